// One lane at a time: the backend of portable kernels and of CUDA threads.
//
// Every backend in this folder has the same members; the headers of math/ are templates over
// backends. A group is the work of one step of the fill loop: `blocks` Philox blocks, whose words
// lie in `vectors` pairs of 32-bit vectors (first: words 0 and 2 of each block, second: words 1 and
// 3). For float64, vectors of twice as many bits make one pair.
#pragma once

#include <cstdint>
#include <cstring>

#include "../base/target.h"
#include "rounding.h"

namespace torchinit::TORCHINIT_TARGET {

struct ScalarLanes {
  using u64 = uint64_t;
  using u32 = uint32_t;
  using i32 = int32_t;
  using f32 = float;
  using f64 = double;

  static constexpr int blocks = 1;
  static constexpr int vectors = 2;
  // The number of groups to compute together, so that their chains of dependent rounds overlap.
  // (TORCHINIT_QUICK_BUILD reduces it, for builds under sanitisers.)
  static constexpr int groups_abreast = 1;
  // The product's tile in registers: rows, and vectors of columns (cpu/block_kernel.inc).
  static constexpr int product_rows = 4, product_vectors = 4;

  static TORCHINIT_INLINE u64 block_offsets() { return 0; }
  // Writes the numbers of `blocks` consecutive blocks, in order.
  static TORCHINIT_INLINE void store_blocks(uint64_t* to, uint64_t block) { *to = block; }
  // Loads the numbers of any blocks, in order, each into the lane of its position.
  static TORCHINIT_INLINE u64 load_blocks(const uint64_t* from) { return *from; }
  static TORCHINIT_INLINE u64 broadcast64(uint64_t x) { return x; }
  // The second argument only selects the vector type.
  static TORCHINIT_INLINE f32 broadcast(float x, f32) { return x; }
  static TORCHINIT_INLINE f64 broadcast(double x, f64) { return x; }

  // The product of the low halves of the lanes with a constant.
  static TORCHINIT_INLINE u64 multiply_wide(u64 a, uint32_t b) {
#if TORCHINIT_DEVICE_PASS
    u64 product;  // for the expression below, nvcc also adds products of the upper halves, zeros
    asm("mul.wide.u32 %0, %1, %2;" : "=l"(product) : "r"(static_cast<uint32_t>(a)), "r"(b));
    return product;
#else
    return static_cast<u64>(static_cast<uint32_t>(a)) * b;
#endif
  }

  // The lower, or upper, halves of the lanes of a and b, side by side: words 0 and 2, or 1 and 3.
  static TORCHINIT_INLINE void pack_lower(u64 a, u64 b, u32 words[vectors]) {
    words[0] = static_cast<u32>(a);
    words[1] = static_cast<u32>(b);
  }
  static TORCHINIT_INLINE void pack_upper(u64 a, u64 b, u32 words[vectors]) {
    pack_lower(a >> 32, b >> 32, words);
  }
  // low's low half below high's low half.
  static TORCHINIT_INLINE u64 pack64(u64 low, u64 high) {
    return static_cast<uint32_t>(low) | (high << 32);
  }

  static TORCHINIT_INLINE u32 bits_of(f32 x) {
    u32 b;
    memcpy(&b, &x, sizeof b);
    return b;
  }
  static TORCHINIT_INLINE i32 bits(f32 x) { return static_cast<i32>(bits_of(x)); }
  static TORCHINIT_INLINE u64 bits(f64 x) {
    u64 b;
    memcpy(&b, &x, sizeof b);
    return b;
  }
  static TORCHINIT_INLINE f32 from_bits(u32 b) {
    f32 x;
    memcpy(&x, &b, sizeof x);
    return x;
  }
  static TORCHINIT_INLINE f32 from_bits(i32 b) { return from_bits(static_cast<u32>(b)); }
  static TORCHINIT_INLINE f64 from_bits(u64 b) {
    f64 x;
    memcpy(&x, &b, sizeof x);
    return x;
  }

  static TORCHINIT_INLINE f32 to_float(i32 x) { return static_cast<f32>(x); }
  // Exact for x < 2^53.
  static TORCHINIT_INLINE f64 to_double(u64 x) { return static_cast<f64>(static_cast<int64_t>(x)); }

  static TORCHINIT_INLINE f32 fma(f32 a, f32 b, f32 c) {
#if TORCHINIT_DEVICE_PASS
    return __fmaf_rn(a, b, c);
#elif TORCHINIT_HARDWARE_FMA
    return __builtin_fmaf(a, b, c);
#else
    // The product is exact in double; rounding the sum to odd makes the second rounding harmless
    // (Boldo and Melquiond 2008). A library call would be twenty times slower.
    const double product = static_cast<double>(a) * b;
    const double sum = product + c;
    const double part = sum - product;
    const double error = (product - (sum - part)) + (c - part);
    u64 odd = bits(sum);
    if (error != 0 && (odd & 1) == 0) odd += (error > 0) == (sum > 0) ? 1 : -1;
    return static_cast<f32>(from_bits(odd));
#endif
  }
  static TORCHINIT_INLINE f64 fma(f64 a, f64 b, f64 c) {
#if TORCHINIT_DEVICE_PASS
    return __fma_rn(a, b, c);
#else
    return __builtin_fma(a, b, c);
#endif
  }
  // A root by an approximate reciprocal root r, without the check of ranges that the compiler's
  // has. Right for all x if r is correctly rounded; whether a GPU's is near enough, only a GPU can
  // tell: tests/native/device_arithmetic.cu. Not in use.
  static TORCHINIT_INLINE f32 sqrt_by_reciprocal(f32 x, f32 r) {
    r = r < 0x1.fffffep127f ? r : 0x1.fffffep127f;  // of zero
    const f32 s = x * r;
    return fma(fma(-s, s, x), 0.5f * r, s);
  }
  static TORCHINIT_INLINE f32 sqrt(f32 x) {
#if TORCHINIT_DEVICE_PASS && defined(TORCHINIT_SQRT_BY_RECIPROCAL)
    f32 r;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return sqrt_by_reciprocal(x, r);
#elif TORCHINIT_DEVICE_PASS
    return __fsqrt_rn(x);
#else
    return __builtin_sqrtf(x);
#endif
  }
  static TORCHINIT_INLINE f64 sqrt(f64 x) {
#if TORCHINIT_DEVICE_PASS
    return __dsqrt_rn(x);
#else
    return __builtin_sqrt(x);
#endif
  }

  // For two zeros, min and max return b, or the smaller or greater by sign, depending on the
  // backend. The bounds of clamp (math/samplers.h) make either right.
#if TORCHINIT_DEVICE_PASS
  static TORCHINIT_INLINE f32 min(f32 a, f32 b) { return fminf(a, b); }
  static TORCHINIT_INLINE f32 max(f32 a, f32 b) { return fmaxf(a, b); }
  static TORCHINIT_INLINE f64 min(f64 a, f64 b) { return fmin(a, b); }
  static TORCHINIT_INLINE f64 max(f64 a, f64 b) { return fmax(a, b); }
#else
  static TORCHINIT_INLINE f32 min(f32 a, f32 b) { return a < b ? a : b; }
  static TORCHINIT_INLINE f32 max(f32 a, f32 b) { return a > b ? a : b; }
  static TORCHINIT_INLINE f64 min(f64 a, f64 b) { return a < b ? a : b; }
  static TORCHINIT_INLINE f64 max(f64 a, f64 b) { return a > b ? a : b; }
#endif

  // a where the top bit of the condition is set, else b.
  static TORCHINIT_INLINE f32 select(u32 condition, f32 a, f32 b) {
    return condition >> 31 ? a : b;
  }
  static TORCHINIT_INLINE f64 select(u64 condition, f64 a, f64 b) {
    return condition >> 63 ? a : b;
  }
  // x with its sign changed where the top bit of the word is set.
  static TORCHINIT_INLINE f32 flip_sign(f32 x, u32 word) {
    return from_bits(bits_of(x) ^ (word & 0x80000000u));
  }
  static TORCHINIT_INLINE f64 flip_sign(f64 x, u64 word) {
    return from_bits(bits(x) ^ (word & 0x8000000000000000u));
  }
  // Whether any lane's top bit is set.
  static TORCHINIT_INLINE bool any(u32 condition) { return condition >> 31; }
  static TORCHINIT_INLINE bool any(u64 condition) { return condition >> 63; }

  // Stores put first and second of each pair side by side, blocks in order. Streaming stores bypass
  // the cache if the processor can, and then need an address aligned to the group's bytes or 64.
  template <bool streaming>
  static TORCHINIT_INLINE void store(float* to, f32 x, f32 y) {
    to[0] = x;
    to[1] = y;
  }
  template <bool streaming>
  static TORCHINIT_INLINE void store(double* to, f64 x, f64 y) {
    to[0] = x;
    to[1] = y;
  }
  template <bool streaming>
  static TORCHINIT_INLINE void store(uint32_t* to, u32 x, u32 y) {
    to[0] = x;
    to[1] = y;
  }
  template <bool streaming>
  static TORCHINIT_INLINE void store(uint64_t* to, u64 x, u64 y) {
    memcpy(to, &x, sizeof x);  // constants of narrower elements may be less aligned
    memcpy(to + 1, &y, sizeof y);
  }
  // Each 32-bit lane holds two 16-bit elements in memory order.
  template <bool streaming>
  static TORCHINIT_INLINE void store_pairs(uint16_t* to, u32 pair) {
    memcpy(to, &pair, sizeof pair);
  }
  // Each 32-bit lane holds two 8-bit elements in its lower half, zeros above.
  template <bool streaming>
  static TORCHINIT_INLINE void store_byte_pairs(uint8_t* to, u32 pair) {
    memcpy(to, &pair, 2);
  }
  template <bool streaming>
  static TORCHINIT_INLINE void store_float16(uint16_t* to, f32 x, f32 y) {
#if TORCHINIT_DEVICE_ARCHITECTURE >= 800
    u32 pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(y), "f"(x));
#else
    const u32 low = round_to_float16(bits_of(x)), high = round_to_float16(bits_of(y));
    const u32 pair = low | (high << 16);
#endif
    memcpy(to, &pair, sizeof pair);
  }
  // Whether the backend has store_bfloat16, for values that are never subnormal, and
  // converts_bfloat16(), which tells whether this processor supports it.
  static constexpr bool may_convert_bfloat16 = false;
  // The lowest byte of each lane, in order.
  static TORCHINIT_INLINE void store_bytes(uint8_t* to, u32 x) { *to = static_cast<uint8_t>(x); }
  // The largest lane of each of four vectors.
  static TORCHINIT_INLINE void store_largest(float* to, f32 a, f32 b, f32 c, f32 d) {
    to[0] = a;
    to[1] = b;
    to[2] = c;
    to[3] = d;
  }
  static TORCHINIT_INLINE void fence() {}
};

}  // namespace torchinit::TORCHINIT_TARGET
