// Four Philox blocks a step: AVX2, FMA and F16C. See scalar.h for what each member means.
//
// The lanes hold blocks 0 2 1 3, so that interleaving within 128-bit lanes leaves blocks 0-1 and
// 2-3 in memory order.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "../base/target.h"

namespace torchinit::TORCHINIT_TARGET {

struct Avx2Lanes {
  typedef uint64_t u64 __attribute__((vector_size(32)));
  typedef uint32_t u32 __attribute__((vector_size(32)));
  typedef int32_t i32 __attribute__((vector_size(32)));
  typedef float f32 __attribute__((vector_size(32)));
  typedef double f64 __attribute__((vector_size(32)));

  static constexpr int blocks = 4;
  static constexpr int vectors = 1;
#ifdef TORCHINIT_QUICK_BUILD
  static constexpr int groups_abreast = 2;
#else
  static constexpr int groups_abreast = 4;
#endif
  // The product's tile in registers (cpu/block_kernel.inc): 12 of 16.
  static constexpr int product_rows = 6, product_vectors = 2;

  static TORCHINIT_INLINE u64 block_offsets() { return u64{0, 2, 1, 3}; }
  static TORCHINIT_INLINE void store_blocks(uint64_t* to, uint64_t block) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                        __m256i(broadcast64(block) + u64{0, 1, 2, 3}));
  }
  static TORCHINIT_INLINE u64 load_blocks(const uint64_t* from) {
    const __m256i blocks = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return u64(_mm256_permute4x64_epi64(blocks, _MM_SHUFFLE(3, 1, 2, 0)));
  }
  static TORCHINIT_INLINE u64 broadcast64(uint64_t x) {
    return u64(_mm256_set1_epi64x(static_cast<long long>(x)));
  }
  static TORCHINIT_INLINE f32 broadcast(float x, f32) { return f32(_mm256_set1_ps(x)); }
  static TORCHINIT_INLINE f64 broadcast(double x, f64) { return f64(_mm256_set1_pd(x)); }

  static TORCHINIT_INLINE u64 multiply_wide(u64 a, uint32_t b) {
    return u64(_mm256_mul_epu32(__m256i(a), _mm256_set1_epi64x(b)));
  }

  static TORCHINIT_INLINE void pack_lower(u64 a, u64 b, u32 words[1]) { words[0] = weave(a, b); }
  static TORCHINIT_INLINE void pack_upper(u64 a, u64 b, u32 words[1]) {
    words[0] = u32(_mm256_blend_epi32(__m256i(a >> 32), __m256i(b), 0xAA));
  }
  static TORCHINIT_INLINE u64 pack64(u64 low, u64 high) { return u64(weave(low, high)); }

  static TORCHINIT_INLINE i32 bits(f32 x) { return i32(x); }
  static TORCHINIT_INLINE u64 bits(f64 x) { return u64(x); }
  static TORCHINIT_INLINE f32 from_bits(u32 b) { return f32(b); }
  static TORCHINIT_INLINE f32 from_bits(i32 b) { return f32(b); }
  static TORCHINIT_INLINE f64 from_bits(u64 b) { return f64(b); }

  static TORCHINIT_INLINE f32 to_float(i32 x) { return f32(_mm256_cvtepi32_ps(__m256i(x))); }
  // AVX2 has no such conversion: the halves are inserted into the significands of 2^52 and 2^84.
  static TORCHINIT_INLINE f64 to_double(u64 x) {
    const f64 low = from_bits((x & 0xffffffffu) | 0x4330000000000000u);
    const f64 high = from_bits((x >> 32) | 0x4530000000000000u);
    return (high - 0x1.00000001p84) + low;
  }

  static TORCHINIT_INLINE f32 fma(f32 a, f32 b, f32 c) {
    return f32(_mm256_fmadd_ps(__m256(a), __m256(b), __m256(c)));
  }
  static TORCHINIT_INLINE f64 fma(f64 a, f64 b, f64 c) {
    return f64(_mm256_fmadd_pd(__m256d(a), __m256d(b), __m256d(c)));
  }
  static TORCHINIT_INLINE f32 sqrt(f32 x) { return f32(_mm256_sqrt_ps(__m256(x))); }
  static TORCHINIT_INLINE f64 sqrt(f64 x) { return f64(_mm256_sqrt_pd(__m256d(x))); }
  static TORCHINIT_INLINE f32 min(f32 a, f32 b) { return f32(_mm256_min_ps(__m256(a), __m256(b))); }
  static TORCHINIT_INLINE f32 max(f32 a, f32 b) { return f32(_mm256_max_ps(__m256(a), __m256(b))); }
  static TORCHINIT_INLINE f64 min(f64 a, f64 b) {
    return f64(_mm256_min_pd(__m256d(a), __m256d(b)));
  }
  static TORCHINIT_INLINE f64 max(f64 a, f64 b) {
    return f64(_mm256_max_pd(__m256d(a), __m256d(b)));
  }

  static TORCHINIT_INLINE f32 select(u32 condition, f32 a, f32 b) {
    return f32(_mm256_blendv_ps(__m256(b), __m256(a), __m256(condition)));
  }
  static TORCHINIT_INLINE f64 select(u64 condition, f64 a, f64 b) {
    return f64(_mm256_blendv_pd(__m256d(b), __m256d(a), __m256d(condition)));
  }
  static TORCHINIT_INLINE f32 flip_sign(f32 x, u32 word) {
    return f32(u32(x) ^ (word & 0x80000000u));
  }
  static TORCHINIT_INLINE f64 flip_sign(f64 x, u64 word) {
    return f64(u64(x) ^ (word & 0x8000000000000000u));
  }
  static TORCHINIT_INLINE bool any(u32 condition) {
    return _mm256_movemask_ps(__m256(condition)) != 0;
  }
  static TORCHINIT_INLINE bool any(u64 condition) {
    return _mm256_movemask_pd(__m256d(condition)) != 0;
  }

  template <bool streaming>
  static TORCHINIT_INLINE void store(float* to, f32 x, f32 y) {
    put<streaming>(to, __m256i(_mm256_unpacklo_ps(__m256(x), __m256(y))));
    put<streaming>(to + 8, __m256i(_mm256_unpackhi_ps(__m256(x), __m256(y))));
  }
  template <bool streaming>
  static TORCHINIT_INLINE void store(double* to, f64 x, f64 y) {
    put<streaming>(to, __m256i(_mm256_unpacklo_pd(__m256d(x), __m256d(y))));
    put<streaming>(to + 4, __m256i(_mm256_unpackhi_pd(__m256d(x), __m256d(y))));
  }
  template <bool streaming>
  static TORCHINIT_INLINE void store(uint32_t* to, u32 x, u32 y) {
    put<streaming>(to, _mm256_unpacklo_epi32(__m256i(x), __m256i(y)));
    put<streaming>(to + 8, _mm256_unpackhi_epi32(__m256i(x), __m256i(y)));
  }
  template <bool streaming>
  static TORCHINIT_INLINE void store(uint64_t* to, u64 x, u64 y) {
    put<streaming>(to, _mm256_unpacklo_epi64(__m256i(x), __m256i(y)));
    put<streaming>(to + 4, _mm256_unpackhi_epi64(__m256i(x), __m256i(y)));
  }
  template <bool streaming>
  static TORCHINIT_INLINE void store_pairs(uint16_t* to, u32 pair) {
    put<streaming>(to, _mm256_permute4x64_epi64(__m256i(pair), _MM_SHUFFLE(3, 1, 2, 0)));
  }
  template <bool streaming>
  static TORCHINIT_INLINE void store_byte_pairs(uint8_t* to, u32 pair) {
    const u64 quad = u64(pair) | (u64(pair) >> 16);  // the four elements of a block
    const __m256i order = _mm256_setr_epi32(0, 4, 2, 6, 0, 0, 0, 0);
    const __m128i quads = _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(__m256i(quad), order));
    if (streaming)
      _mm_stream_si128(reinterpret_cast<__m128i*>(to), quads);
    else
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to), quads);
  }
  template <bool streaming>
  static TORCHINIT_INLINE void store_float16(uint16_t* to, f32 x, f32 y) {
    const __m128i low = _mm256_cvtps_ph(_mm256_unpacklo_ps(__m256(x), __m256(y)), 0);
    const __m128i high = _mm256_cvtps_ph(_mm256_unpackhi_ps(__m256(x), __m256(y)), 0);
    put<streaming>(to, _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1));
  }
  static constexpr bool may_convert_bfloat16 = false;
  static TORCHINIT_INLINE void store_bytes(uint8_t* to, u32 x) {
    const __m256i low = _mm256_set1_epi32(0x0c080400);  // of each 128 bits, their lowest bytes
    const __m256i four = _mm256_shuffle_epi8(__m256i(x), low);
    const __m128i bytes =
        _mm_unpacklo_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), bytes);
  }
  static TORCHINIT_INLINE void store_largest(float* to, f32 a, f32 b, f32 c, f32 d) {
    const __m256d ab = pairwise(__m256(a), __m256(b)), cd = pairwise(__m256(c), __m256(d));
    const __m256 all = _mm256_max_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(ab, cd)),
                                     _mm256_castpd_ps(_mm256_unpackhi_pd(ab, cd)));
    _mm_storeu_ps(to, _mm_max_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
  }
  static TORCHINIT_INLINE void fence() { _mm_sfence(); }

 private:
  // Of each 128 bits, the larger of lanes 0 and 2, and of 1 and 3, of a and b in turn.
  static TORCHINIT_INLINE __m256d pairwise(__m256 a, __m256 b) {
    return _mm256_castps_pd(_mm256_max_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)));
  }
  // The low halves of a's lanes in the even places, of b's in the odd ones.
  static TORCHINIT_INLINE u32 weave(u64 a, u64 b) {
    return u32(_mm256_blend_epi32(__m256i(a), __m256i(b << 32), 0xAA));
  }
  template <bool streaming>
  static TORCHINIT_INLINE void put(void* to, __m256i x) {
    if (streaming)
      _mm256_stream_si256(static_cast<__m256i*>(to), x);
    else
      _mm256_storeu_si256(static_cast<__m256i*>(to), x);
  }
};

}  // namespace torchinit::TORCHINIT_TARGET
