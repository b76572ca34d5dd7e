// The kernels for AVX2 with FMA and F16C (Intel Haswell, AMD Zen, and newer).
#include "kernels.h"
#if TORCHINIT_X86
#include <immintrin.h>

#include <cstdint>
#include <cstring>

// Everything that follows is compiled for the instruction set; what came before is not.
#if TORCHINIT_CLANG
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif
#define TORCHINIT_TARGET avx2
#define TORCHINIT_HARDWARE_FMA 1
#define TORCHINIT_LANES Avx2Lanes
#include "../job/visit_plan.h"
#include "../math/block_scale.h"
#include "../math/reflector.h"
#include "../simd/avx2.h"
#include "../simd/scalar.h"
#include "../simd/transpose.h"
#include "block_kernel.inc"
#include "fill_kernel.inc"
#include "quantise_kernel.inc"

namespace torchinit::cpu {
const InstructionSet avx2_set = {"avx2",
                                 torchinit::avx2::fill_plan,
                                 torchinit::avx2::fill_rows_plan,
                                 torchinit::avx2::block_kernels<float>,
                                 torchinit::avx2::block_kernels<double>,
                                 torchinit::avx2::round_values,
                                 torchinit::avx2::quantise_tile,
                                 torchinit::avx2::largest_magnitude};
}
#if TORCHINIT_CLANG
#pragma clang attribute pop
#endif
#endif
