// The kernels for NEON: all 64-bit Arm processors.
#include "kernels.h"
#if TORCHINIT_ARM64
#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#define TORCHINIT_TARGET neon
#define TORCHINIT_LANES NeonLanes
#include "../job/visit_plan.h"
#include "../math/block_scale.h"
#include "../math/reflector.h"
#include "../simd/neon.h"
#include "../simd/scalar.h"
#include "../simd/transpose.h"
#include "block_kernel.inc"
#include "fill_kernel.inc"
#include "quantise_kernel.inc"

namespace torchinit::cpu {
const InstructionSet neon_set = {"neon",
                                 torchinit::neon::fill_plan,
                                 torchinit::neon::fill_rows_plan,
                                 torchinit::neon::block_kernels<float>,
                                 torchinit::neon::block_kernels<double>,
                                 torchinit::neon::round_values,
                                 torchinit::neon::quantise_tile,
                                 torchinit::neon::largest_magnitude};
}
#endif
