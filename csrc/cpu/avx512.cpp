// The kernels for AVX-512 F, DQ, BW and VL (Intel Skylake-X, AMD Zen 4, and newer). The compiler
// never emits BF16 instructions by itself: only one function of the lanes uses them.
#include "kernels.h"
#if TORCHINIT_X86
#include <immintrin.h>

#include <cstdint>
#include <cstring>

// Everything that follows is compiled for the instruction set; what came before is not.
#if TORCHINIT_CLANG
#pragma clang attribute push(                                                               \
    __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,avx2,fma,f16c"))), \
    apply_to = function)
#else
// GCC's own header trips these for its "undefined" operands (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,avx2,fma,f16c")
#endif
#define TORCHINIT_TARGET avx512
#define TORCHINIT_HARDWARE_FMA 1
#define TORCHINIT_LANES Avx512Lanes
#include "../job/visit_plan.h"
#include "../math/block_scale.h"
#include "../math/reflector.h"
#include "../simd/avx512.h"
#include "../simd/scalar.h"
#include "../simd/transpose.h"
#include "block_kernel.inc"
#include "fill_kernel.inc"
#include "quantise_kernel.inc"

namespace torchinit::cpu {
const InstructionSet avx512_set = {"avx512",
                                   torchinit::avx512::fill_plan,
                                   torchinit::avx512::fill_rows_plan,
                                   torchinit::avx512::block_kernels<float>,
                                   torchinit::avx512::block_kernels<double>,
                                   torchinit::avx512::round_values,
                                   torchinit::avx512::quantise_tile,
                                   torchinit::avx512::largest_magnitude};
}
#if TORCHINIT_CLANG
#pragma clang attribute pop
#endif
#endif
