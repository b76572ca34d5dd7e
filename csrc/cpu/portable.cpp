// The kernels for any processor, one lane at a time.
#include <cstdint>
#include <cstring>

#define TORCHINIT_TARGET portable
#define TORCHINIT_LANES ScalarLanes
#include "../simd/scalar.h"
#include "../math/reflector.h"
#include "../job/visit_plan.h"
#include "kernels.h"
#include "kernels.inc"

namespace torchinit::cpu {
const InstructionSet portable_set = {"portable", torchinit::portable::fill_plan,
                                     torchinit::portable::reflect, torchinit::portable::multiply,
                                     torchinit::portable::invert};
}
