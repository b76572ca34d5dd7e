// Eight Philox blocks a step: AVX-512 (F, DQ, BW, VL; BF16 if present). See scalar.h for what each
// member means.
//
// The lanes hold blocks 0 4 1 5 2 6 3 7, so that interleaving within 128-bit lanes, the cheapest
// shuffle, leaves blocks 0-3 and 4-7 in memory order.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "../base/target.h"

namespace torchinit::TORCHINIT_TARGET {

struct Avx512Lanes {
  typedef uint64_t u64 __attribute__((vector_size(64)));
  typedef uint32_t u32 __attribute__((vector_size(64)));
  typedef int32_t i32 __attribute__((vector_size(64)));
  typedef float f32 __attribute__((vector_size(64)));
  typedef double f64 __attribute__((vector_size(64)));

  static constexpr int blocks = 8;
  static constexpr int vectors = 1;
#ifdef TORCHINIT_QUICK_BUILD
  static constexpr int groups_abreast = 2;
#else
  static constexpr int groups_abreast = 8;  // Zen 4, one thread, normal: 1.87 G/s; 1.77 with 4
#endif
  // The product's tile in registers (cpu/block_kernel.inc): 28 of 32.
  static constexpr int product_rows = 14, product_vectors = 2;

  static TORCHINIT_INLINE u64 block_offsets() { return u64{0, 4, 1, 5, 2, 6, 3, 7}; }
  static TORCHINIT_INLINE void store_blocks(uint64_t* to, uint64_t block) {
    _mm512_storeu_si512(to, __m512i(broadcast64(block) + u64{0, 1, 2, 3, 4, 5, 6, 7}));
  }
  static TORCHINIT_INLINE u64 load_blocks(const uint64_t* from) {
    return u64(_mm512_permutexvar_epi64(__m512i(block_offsets()), _mm512_loadu_si512(from)));
  }
  static TORCHINIT_INLINE u64 broadcast64(uint64_t x) {
    return u64(_mm512_set1_epi64(static_cast<long long>(x)));
  }
  static TORCHINIT_INLINE f32 broadcast(float x, f32) { return f32(_mm512_set1_ps(x)); }
  static TORCHINIT_INLINE f64 broadcast(double x, f64) { return f64(_mm512_set1_pd(x)); }

  // One vpmuludq; a product of masked lanes would compile to the slow vpmullq.
  static TORCHINIT_INLINE u64 multiply_wide(u64 a, uint32_t b) {
    return u64(_mm512_mul_epu32(__m512i(a), _mm512_set1_epi64(b)));
  }

  static TORCHINIT_INLINE void pack_lower(u64 a, u64 b, u32 words[1]) { words[0] = weave(a, b); }
  static TORCHINIT_INLINE void pack_upper(u64 a, u64 b, u32 words[1]) {
    words[0] = u32(_mm512_mask_shuffle_epi32(__m512i(b), 0x5555, __m512i(a), _MM_PERM_DDBB));
  }
  static TORCHINIT_INLINE u64 pack64(u64 low, u64 high) { return u64(weave(low, high)); }

  static TORCHINIT_INLINE i32 bits(f32 x) { return i32(x); }
  static TORCHINIT_INLINE u64 bits(f64 x) { return u64(x); }
  static TORCHINIT_INLINE f32 from_bits(u32 b) { return f32(b); }
  static TORCHINIT_INLINE f32 from_bits(i32 b) { return f32(b); }
  static TORCHINIT_INLINE f64 from_bits(u64 b) { return f64(b); }

  static TORCHINIT_INLINE f32 to_float(i32 x) { return f32(_mm512_cvtepi32_ps(__m512i(x))); }
  static TORCHINIT_INLINE f64 to_double(u64 x) { return f64(_mm512_cvtepi64_pd(__m512i(x))); }

  static TORCHINIT_INLINE f32 fma(f32 a, f32 b, f32 c) {
    return f32(_mm512_fmadd_ps(__m512(a), __m512(b), __m512(c)));
  }
  static TORCHINIT_INLINE f64 fma(f64 a, f64 b, f64 c) {
    return f64(_mm512_fmadd_pd(__m512d(a), __m512d(b), __m512d(c)));
  }
  static TORCHINIT_INLINE f32 sqrt(f32 x) { return f32(_mm512_sqrt_ps(__m512(x))); }
  static TORCHINIT_INLINE f64 sqrt(f64 x) { return f64(_mm512_sqrt_pd(__m512d(x))); }
  static TORCHINIT_INLINE f32 min(f32 a, f32 b) { return f32(_mm512_min_ps(__m512(a), __m512(b))); }
  static TORCHINIT_INLINE f32 max(f32 a, f32 b) { return f32(_mm512_max_ps(__m512(a), __m512(b))); }
  static TORCHINIT_INLINE f64 min(f64 a, f64 b) {
    return f64(_mm512_min_pd(__m512d(a), __m512d(b)));
  }
  static TORCHINIT_INLINE f64 max(f64 a, f64 b) {
    return f64(_mm512_max_pd(__m512d(a), __m512d(b)));
  }

  static TORCHINIT_INLINE f32 select(u32 condition, f32 a, f32 b) {
    return f32(
        _mm512_mask_blend_ps(_mm512_movepi32_mask(__m512i(condition)), __m512(b), __m512(a)));
  }
  static TORCHINIT_INLINE f64 select(u64 condition, f64 a, f64 b) {
    return f64(
        _mm512_mask_blend_pd(_mm512_movepi64_mask(__m512i(condition)), __m512d(b), __m512d(a)));
  }
  static TORCHINIT_INLINE f32 flip_sign(f32 x, u32 word) {
    return f32(u32(x) ^ (word & 0x80000000u));
  }
  static TORCHINIT_INLINE f64 flip_sign(f64 x, u64 word) {
    return f64(u64(x) ^ (word & 0x8000000000000000u));
  }
  static TORCHINIT_INLINE bool any(u32 condition) {
    return _mm512_movepi32_mask(__m512i(condition)) != 0;
  }
  static TORCHINIT_INLINE bool any(u64 condition) {
    return _mm512_movepi64_mask(__m512i(condition)) != 0;
  }

  template <bool streaming>
  static TORCHINIT_INLINE void store(float* to, f32 x, f32 y) {
    put<streaming>(to, __m512i(_mm512_unpacklo_ps(__m512(x), __m512(y))));
    put<streaming>(to + 16, __m512i(_mm512_unpackhi_ps(__m512(x), __m512(y))));
  }
  template <bool streaming>
  static TORCHINIT_INLINE void store(double* to, f64 x, f64 y) {
    put<streaming>(to, __m512i(_mm512_unpacklo_pd(__m512d(x), __m512d(y))));
    put<streaming>(to + 8, __m512i(_mm512_unpackhi_pd(__m512d(x), __m512d(y))));
  }
  template <bool streaming>
  static TORCHINIT_INLINE void store(uint32_t* to, u32 x, u32 y) {
    put<streaming>(to, _mm512_unpacklo_epi32(__m512i(x), __m512i(y)));
    put<streaming>(to + 16, _mm512_unpackhi_epi32(__m512i(x), __m512i(y)));
  }
  template <bool streaming>
  static TORCHINIT_INLINE void store(uint64_t* to, u64 x, u64 y) {
    put<streaming>(to, _mm512_unpacklo_epi64(__m512i(x), __m512i(y)));
    put<streaming>(to + 8, _mm512_unpackhi_epi64(__m512i(x), __m512i(y)));
  }
  template <bool streaming>
  static TORCHINIT_INLINE void store_pairs(uint16_t* to, u32 pair) {
    const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
    put<streaming>(to, _mm512_permutexvar_epi64(order, __m512i(pair)));
  }
  template <bool streaming>
  static TORCHINIT_INLINE void store_byte_pairs(uint8_t* to, u32 pair) {
    const u64 quad = u64(pair) | (u64(pair) >> 16);  // the four elements of a block
    const __m256i order = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
    const __m256i quads = _mm256_permutevar8x32_epi32(_mm512_cvtepi64_epi32(__m512i(quad)), order);
    if (streaming)
      _mm256_stream_si256(reinterpret_cast<__m256i*>(to), quads);
    else
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), quads);
  }
  template <bool streaming>
  static TORCHINIT_INLINE void store_float16(uint16_t* to, f32 x, f32 y) {
    const __m256i low = _mm512_cvtps_ph(_mm512_unpacklo_ps(__m512(x), __m512(y)), 0);
    const __m256i high = _mm512_cvtps_ph(_mm512_unpackhi_ps(__m512(x), __m512(y)), 0);
    put<streaming>(to, _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1));
  }
  static constexpr bool may_convert_bfloat16 = true;
  static TORCHINIT_INLINE bool converts_bfloat16() { return __builtin_cpu_supports("avx512bf16"); }
  template <bool streaming>
  static TORCHINIT_INLINE void store_bfloat16(uint16_t* to, f32 x, f32 y) {
    const __m512 low = _mm512_unpacklo_ps(__m512(x), __m512(y));
    const __m512 high = _mm512_unpackhi_ps(__m512(x), __m512(y));
    put<streaming>(to, __m512i(_mm512_cvtne2ps_pbh(high, low)));
  }
  static TORCHINIT_INLINE void store_bytes(uint8_t* to, u32 x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(__m512i(x)));
  }
  static TORCHINIT_INLINE void store_largest(float* to, f32 a, f32 b, f32 c, f32 d) {
    const __m512 ab = pairwise(__m512(a), __m512(b)), cd = pairwise(__m512(c), __m512(d));
    const __m512d low = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
    const __m512d high = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
    const __m512 all = _mm512_max_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
    const __m256 half = _mm256_max_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    _mm_storeu_ps(to, _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
  }
  static TORCHINIT_INLINE void fence() { _mm_sfence(); }

 private:
  // Of each 128 bits, the larger of lanes 0 and 2, and of 1 and 3, of a and b in turn.
  static TORCHINIT_INLINE __m512 pairwise(__m512 a, __m512 b) {
    return _mm512_max_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  }
  // The low halves of a's lanes in the even places, of b's in the odd ones: one shuffle.
  static TORCHINIT_INLINE u32 weave(u64 a, u64 b) {
    return u32(_mm512_mask_shuffle_epi32(__m512i(a), 0xAAAA, __m512i(b), _MM_PERM_CCAA));
  }
  template <bool streaming>
  static TORCHINIT_INLINE void put(void* to, __m512i x) {
    if (streaming)
      _mm512_stream_si512(static_cast<__m512i*>(to), x);
    else
      _mm512_storeu_si512(to, x);
  }
};

}  // namespace torchinit::TORCHINIT_TARGET
