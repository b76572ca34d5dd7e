// Rounding of float32 to the 16- and 8-bit formats: to nearest, ties to even, subnormals kept.
#pragma once

#include <cstdint>

#include "../base/target.h"

namespace torchinit::TORCHINIT_TARGET {

// bfloat16 in the upper half of each 32-bit lane, the lower half left undefined. Not for NaN.
// (The conversion of x86 processors treats subnormals as zeros; StoreNormalBFloat16 uses it.)
template <class U>
TORCHINIT_INLINE U round_to_bfloat16(U bits) {
  return bits + 0x7fffu + ((bits >> 16) & 1u);
}

// Two bfloat16 in the halves of each 32-bit lane, x below y. Not for NaN.
template <class L>
TORCHINIT_INLINE typename L::u32 bfloat16_pairs(typename L::f32 x, typename L::f32 y) {
#if TORCHINIT_DEVICE_ARCHITECTURE >= 800
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(y), "f"(x));
  return pair;
#else
  using U = typename L::u32;
  const U low = round_to_bfloat16(U(L::bits(x))), high = round_to_bfloat16(U(L::bits(y)));
  return (low >> 16) | (high & 0xffff0000u);
#endif
}

// float16 from the bits of a float32. Not for NaN.
TORCHINIT_INLINE uint16_t round_to_float16(uint32_t bits) {
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // from 65520 on
  uint32_t rounded;
  if (magnitude < 0x38800000u) {  // below 2^-14: subnormal, in units of 2^-24
    if (magnitude < 0x33000000u) return static_cast<uint16_t>(sign);  // below 2^-25
    const uint32_t shift = 126u - (magnitude >> 23);
    const uint32_t significand = (magnitude & 0x7fffffu) | 0x800000u;
    const uint32_t half = 1u << (shift - 1);
    rounded = (significand + half - 1u + ((significand >> shift) & 1u)) >> shift;
  } else {
    rounded = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  return static_cast<uint16_t>(sign | rounded);
}

// The formats of Micikevicius et al. 2022, "FP8 formats for deep learning".
struct Float8E4M3 {
  static constexpr int bits = 8;
  static constexpr int digits = 3;         // of the fraction
  static constexpr int min_exponent = -6;  // of a normal number
  static constexpr float min_normal = 0x1p-6f, max = 448;
};
struct Float8E5M2 {
  static constexpr int bits = 8;
  static constexpr int digits = 2;
  static constexpr int min_exponent = -14;
  static constexpr float min_normal = 0x1p-14f, max = 57344;
};
// The 4-bit format of OCP's microscaling specification: 0, 0.5, 1, 1.5, 2, 3, 4, 6.
struct Float4E2M1 {
  static constexpr int bits = 4;
  static constexpr int digits = 1;
  static constexpr int min_exponent = 0;
  static constexpr float min_normal = 1, max = 6;
};
// IEEE's binary16. Its infinity is coded as 2^16 would be.
struct Float16 {
  static constexpr int bits = 16;
  static constexpr int digits = 10;
  static constexpr int min_exponent = -14;
  static constexpr float min_normal = 0x1p-14f, max = 0x1p16f;
};

// A narrow format in the lowest bits of each 32-bit lane, zeros above; larger values become its
// largest one. Not for NaN.
template <class L, class Format>
TORCHINIT_INLINE typename L::u32 round_to_small(typename L::f32 x) {
  using U = typename L::u32;
  constexpr int shift = 23 - Format::digits;
  const U bits = U(L::bits(x));
  const auto magnitude = L::min(L::from_bits(U(bits & 0x7fffffffu)), L::broadcast(Format::max, x));
  const auto power = L::from_bits(U(U(L::bits(magnitude)) & 0x7f800000u));
  const U exponent = U(L::bits(L::max(power, L::broadcast(Format::min_normal, x))));
  // A sum with 2^23 units in the last place of the result is rounded to such units.
  const U units = exponent + (uint32_t{shift} << 23);
  const U significand = U(L::bits(magnitude + L::from_bits(units))) - units;
  constexpr uint32_t lowest = static_cast<uint32_t>(127 + Format::min_exponent) << Format::digits;
  constexpr uint32_t sign = uint32_t{1} << (Format::bits - 1);
  return ((bits >> (32 - Format::bits)) & sign) | ((exponent >> shift) - lowest + significand);
}

// Two 8-bit values in the lower half of each 32-bit lane, x below y, zeros above.
template <class L, class Format>
TORCHINIT_INLINE typename L::u32 float8_pairs(typename L::f32 x, typename L::f32 y) {
#if TORCHINIT_DEVICE_ARCHITECTURE >= 890
  uint16_t pair;
  if (Format::digits == 3)
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(y), "f"(x));
  else
    asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(y), "f"(x));
  return pair;
#else
  return round_to_small<L, Format>(x) | (round_to_small<L, Format>(y) << 8);
#endif
}

}  // namespace torchinit::TORCHINIT_TARGET
