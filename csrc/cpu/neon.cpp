// The kernels for NEON: all 64-bit Arm processors.
#include "kernels.h"
#if defined(__aarch64__)
#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#define TORCHINIT_TARGET neon
#define TORCHINIT_LANES NeonLanes
#include "../simd/neon.h"
#include "../simd/scalar.h"
#include "../math/reflector.h"
#include "../job/visit_plan.h"
#include "kernels.inc"

namespace torchinit::cpu {
const InstructionSet neon_set = {"neon", torchinit::neon::fill_plan, torchinit::neon::reflect,
                                 torchinit::neon::multiply, torchinit::neon::invert};
}
#endif
