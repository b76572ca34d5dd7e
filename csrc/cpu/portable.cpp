// The kernels for any processor, one lane at a time.
#include <cstdint>
#include <cstring>

#define TORCHINIT_TARGET portable
#define TORCHINIT_LANES ScalarLanes
#include "../job/visit_plan.h"
#include "../math/reflector.h"
#include "../simd/scalar.h"
#include "fill_kernel.inc"
#include "kernels.h"
#include "reflector_kernel.inc"

namespace torchinit::cpu {
const InstructionSet portable_set = {"portable",
                                     torchinit::portable::fill_plan,
                                     torchinit::portable::fill_rows_plan,
                                     torchinit::portable::reflect,
                                     torchinit::portable::multiply,
                                     torchinit::portable::invert};
}
