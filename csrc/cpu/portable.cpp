// The kernels for any processor, one lane at a time.
#include <cstdint>
#include <cstring>

#include "kernels.h"

#define TORCHINIT_TARGET portable
#define TORCHINIT_LANES ScalarLanes
#include "../job/visit_plan.h"
#include "../math/block_scale.h"
#include "../math/reflector.h"
#include "../simd/scalar.h"
#include "../simd/transpose.h"
#include "block_kernel.inc"
#include "fill_kernel.inc"
#include "quantise_kernel.inc"

namespace torchinit::cpu {
const InstructionSet portable_set = {"portable",
                                     torchinit::portable::fill_plan,
                                     torchinit::portable::fill_rows_plan,
                                     torchinit::portable::block_kernels<float>,
                                     torchinit::portable::block_kernels<double>,
                                     torchinit::portable::round_values,
                                     torchinit::portable::quantise_tile,
                                     torchinit::portable::largest_magnitude};
}
