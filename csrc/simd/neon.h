// Two Philox blocks a step: NEON, which every 64-bit Arm processor has. See scalar.h for what each
// member means.
#pragma once

#include <arm_neon.h>

#include <cstdint>

#include "../base/target.h"

namespace torchinit::TORCHINIT_TARGET {

struct NeonLanes {
  // Not the types of arm_neon.h: not all compilers give them operators.
  typedef uint64_t u64 __attribute__((vector_size(16)));
  typedef uint32_t u32 __attribute__((vector_size(16)));
  typedef int32_t i32 __attribute__((vector_size(16)));
  typedef float f32 __attribute__((vector_size(16)));
  typedef double f64 __attribute__((vector_size(16)));

  static constexpr int blocks = 2;
  static constexpr int vectors = 1;
  static constexpr int groups_abreast = 2;
  // The product's tile in registers (cpu/block_kernel.inc): 24 of 32.
  static constexpr int product_rows = 6, product_vectors = 4;

  static TORCHINIT_INLINE u64 block_offsets() { return u64{0, 1}; }
  static TORCHINIT_INLINE void store_blocks(uint64_t* to, uint64_t block) {
    vst1q_u64(to, uint64x2_t(broadcast64(block) + block_offsets()));
  }
  static TORCHINIT_INLINE u64 load_blocks(const uint64_t* from) { return u64(vld1q_u64(from)); }
  static TORCHINIT_INLINE u64 broadcast64(uint64_t x) { return u64(vdupq_n_u64(x)); }
  static TORCHINIT_INLINE f32 broadcast(float x, f32) { return f32(vdupq_n_f32(x)); }
  static TORCHINIT_INLINE f64 broadcast(double x, f64) { return f64(vdupq_n_f64(x)); }

  static TORCHINIT_INLINE u64 multiply_wide(u64 a, uint32_t b) {
    return u64(vmull_u32(vmovn_u64(uint64x2_t(a)), vdup_n_u32(b)));
  }

  static TORCHINIT_INLINE void pack_lower(u64 a, u64 b, u32 words[1]) { words[0] = weave(a, b); }
  static TORCHINIT_INLINE void pack_upper(u64 a, u64 b, u32 words[1]) {
    words[0] = u32(vtrn2q_u32(uint32x4_t(a), uint32x4_t(b)));
  }
  static TORCHINIT_INLINE u64 pack64(u64 low, u64 high) { return u64(weave(low, high)); }

  static TORCHINIT_INLINE i32 bits(f32 x) { return i32(x); }
  static TORCHINIT_INLINE u64 bits(f64 x) { return u64(x); }
  static TORCHINIT_INLINE f32 from_bits(u32 b) { return f32(b); }
  static TORCHINIT_INLINE f32 from_bits(i32 b) { return f32(b); }
  static TORCHINIT_INLINE f64 from_bits(u64 b) { return f64(b); }

  static TORCHINIT_INLINE f32 to_float(i32 x) { return f32(vcvtq_f32_s32(int32x4_t(x))); }
  static TORCHINIT_INLINE f64 to_double(u64 x) { return f64(vcvtq_f64_u64(uint64x2_t(x))); }

  // The instruction adds to its first operand.
  static TORCHINIT_INLINE f32 fma(f32 a, f32 b, f32 c) {
    return f32(vfmaq_f32(float32x4_t(c), float32x4_t(a), float32x4_t(b)));
  }
  static TORCHINIT_INLINE f64 fma(f64 a, f64 b, f64 c) {
    return f64(vfmaq_f64(float64x2_t(c), float64x2_t(a), float64x2_t(b)));
  }
  static TORCHINIT_INLINE f32 sqrt(f32 x) { return f32(vsqrtq_f32(float32x4_t(x))); }
  static TORCHINIT_INLINE f64 sqrt(f64 x) { return f64(vsqrtq_f64(float64x2_t(x))); }

  // NEON's own minimum and maximum order the zeros by sign.
  static TORCHINIT_INLINE f32 min(f32 a, f32 b) {
    return choose(vcltq_f32(float32x4_t(a), float32x4_t(b)), a, b);
  }
  static TORCHINIT_INLINE f32 max(f32 a, f32 b) {
    return choose(vcgtq_f32(float32x4_t(a), float32x4_t(b)), a, b);
  }
  static TORCHINIT_INLINE f64 min(f64 a, f64 b) {
    return choose(vcltq_f64(float64x2_t(a), float64x2_t(b)), a, b);
  }
  static TORCHINIT_INLINE f64 max(f64 a, f64 b) {
    return choose(vcgtq_f64(float64x2_t(a), float64x2_t(b)), a, b);
  }

  static TORCHINIT_INLINE f32 select(u32 condition, f32 a, f32 b) {
    return choose(vcltzq_s32(int32x4_t(condition)), a, b);
  }
  static TORCHINIT_INLINE f64 select(u64 condition, f64 a, f64 b) {
    return choose(vcltzq_s64(int64x2_t(condition)), a, b);
  }
  static TORCHINIT_INLINE f32 flip_sign(f32 x, u32 word) {
    return f32(u32(x) ^ (word & 0x80000000u));
  }
  static TORCHINIT_INLINE f64 flip_sign(f64 x, u64 word) {
    return f64(u64(x) ^ (word & 0x8000000000000000u));
  }
  static TORCHINIT_INLINE bool any(u32 condition) {
    return vmaxvq_u32(uint32x4_t(condition)) >> 31 != 0;
  }
  static TORCHINIT_INLINE bool any(u64 condition) {
    return vaddvq_u64(uint64x2_t(condition >> 63)) != 0;
  }

  // Used for streaming stores too: NEON has no special ones.
  template <bool>
  static TORCHINIT_INLINE void store(float* to, f32 x, f32 y) {
    put(to, uint8x16_t(vzip1q_f32(float32x4_t(x), float32x4_t(y))));
    put(to + 4, uint8x16_t(vzip2q_f32(float32x4_t(x), float32x4_t(y))));
  }
  template <bool>
  static TORCHINIT_INLINE void store(double* to, f64 x, f64 y) {
    put(to, uint8x16_t(vzip1q_f64(float64x2_t(x), float64x2_t(y))));
    put(to + 2, uint8x16_t(vzip2q_f64(float64x2_t(x), float64x2_t(y))));
  }
  template <bool>
  static TORCHINIT_INLINE void store(uint32_t* to, u32 x, u32 y) {
    put(to, uint8x16_t(vzip1q_u32(uint32x4_t(x), uint32x4_t(y))));
    put(to + 4, uint8x16_t(vzip2q_u32(uint32x4_t(x), uint32x4_t(y))));
  }
  template <bool>
  static TORCHINIT_INLINE void store(uint64_t* to, u64 x, u64 y) {
    put(to, uint8x16_t(vzip1q_u64(uint64x2_t(x), uint64x2_t(y))));
    put(to + 2, uint8x16_t(vzip2q_u64(uint64x2_t(x), uint64x2_t(y))));
  }
  template <bool>
  static TORCHINIT_INLINE void store_pairs(uint16_t* to, u32 pair) {
    put(to, uint8x16_t(pair));
  }
  template <bool>
  static TORCHINIT_INLINE void store_byte_pairs(uint8_t* to, u32 pair) {
    vst1_u8(to, uint8x8_t(vmovn_u32(uint32x4_t(pair))));
  }
  template <bool>
  static TORCHINIT_INLINE void store_float16(uint16_t* to, f32 x, f32 y) {
    const float16x4_t low = vcvt_f16_f32(vzip1q_f32(float32x4_t(x), float32x4_t(y)));
    put(to, uint8x16_t(vcvt_high_f16_f32(low, vzip2q_f32(float32x4_t(x), float32x4_t(y)))));
  }
  static constexpr bool may_convert_bfloat16 = false;
  static TORCHINIT_INLINE void store_bytes(uint8_t* to, u32 x) {
    const uint16x4_t half = vmovn_u32(uint32x4_t(x));
    const uint32_t four =
        vget_lane_u32(vreinterpret_u32_u8(vmovn_u16(vcombine_u16(half, half))), 0);
    memcpy(to, &four, sizeof four);
  }
  static TORCHINIT_INLINE void store_largest(float* to, f32 a, f32 b, f32 c, f32 d) {
    const float32x4_t ab = vpmaxq_f32(float32x4_t(a), float32x4_t(b));
    vst1q_f32(to, vpmaxq_f32(ab, vpmaxq_f32(float32x4_t(c), float32x4_t(d))));
  }
  static TORCHINIT_INLINE void fence() {}

 private:
  // The low halves of a's lanes in the even places, of b's in the odd ones.
  static TORCHINIT_INLINE u32 weave(u64 a, u64 b) {
    return u32(vtrn1q_u32(uint32x4_t(a), uint32x4_t(b)));
  }
  // a where the mask is all ones, b where it is zero.
  static TORCHINIT_INLINE f32 choose(uint32x4_t mask, f32 a, f32 b) {
    return f32(vbslq_f32(mask, float32x4_t(a), float32x4_t(b)));
  }
  static TORCHINIT_INLINE f64 choose(uint64x2_t mask, f64 a, f64 b) {
    return f64(vbslq_f64(mask, float64x2_t(a), float64x2_t(b)));
  }
  // As bytes, because constants of narrower elements may be less aligned than their words.
  static TORCHINIT_INLINE void put(void* to, uint8x16_t x) {
    vst1q_u8(static_cast<uint8_t*>(to), x);
  }
};

}  // namespace torchinit::TORCHINIT_TARGET
