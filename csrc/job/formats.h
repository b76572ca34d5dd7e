// Values and neighbours of the floating-point formats, to prepare bounds on the host.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "../simd/rounding.h"
#include "../simd/scalar.h"
#include "dtype.h"

namespace torchinit {

// Whether fills never store an infinity: larger values become the largest finite one.
constexpr bool saturates(Dtype dtype) {
  return dtype == Dtype::Float8E4M3 || dtype == Dtype::Float8E5M2;
}

// A quiet NaN of a narrow format.
constexpr uint32_t nan_pattern(Dtype dtype) {
  return dtype == Dtype::Float16      ? 0x7e00
         : dtype == Dtype::BFloat16   ? 0x7fc0
         : dtype == Dtype::Float8E4M3 ? 0x7f
                                      : 0x7e;
}

// The bits of x rounded to nearest in the format of dtype (narrow formats through float32).
inline uint64_t encode(Dtype dtype, double x) {
  if (dtype == Dtype::Float64) {
    uint64_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
  }
  const float single = static_cast<float>(x);
  uint32_t bits;
  std::memcpy(&bits, &single, sizeof bits);
  if (x != x) return dtype == Dtype::Float32 ? bits : nan_pattern(dtype);
  if (dtype == Dtype::Float16) return TORCHINIT_TARGET::round_to_float16(bits);
  if (dtype == Dtype::BFloat16) return TORCHINIT_TARGET::round_to_bfloat16(bits) >> 16;
  using L = TORCHINIT_TARGET::ScalarLanes;
  if (dtype == Dtype::Float8E4M3)
    return TORCHINIT_TARGET::round_to_small<L, TORCHINIT_TARGET::Float8E4M3>(single);
  if (dtype == Dtype::Float8E5M2) {
    if (std::isinf(x)) return x < 0 ? 0xfcu : 0x7cu;
    return TORCHINIT_TARGET::round_to_small<L, TORCHINIT_TARGET::Float8E5M2>(single);
  }
  return bits;
}

// The value of a pattern with one sign bit and the given numbers of exponent and fraction bits.
inline double decode_small(uint64_t bits, int digits, int exponent_bits, bool has_infinity) {
  const int exponent = static_cast<int>(bits >> digits) & ((1 << exponent_bits) - 1);
  const double fraction = static_cast<double>(bits & ((uint64_t{1} << digits) - 1));
  const int lowest = 2 - (1 << (exponent_bits - 1)) - digits;  // power of two of the last digit
  const double magnitude =
      has_infinity && exponent == (1 << exponent_bits) - 1 ? std::numeric_limits<double>::infinity()
      : exponent == 0 ? std::ldexp(fraction, lowest)
                      : std::ldexp(fraction + std::ldexp(1, digits), lowest + exponent - 1);
  return bits >> (digits + exponent_bits) ? -magnitude : magnitude;
}

inline double decode(Dtype dtype, uint64_t bits) {
  if (dtype == Dtype::Float64) {
    double x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
  }
  if (dtype == Dtype::Float16) return decode_small(bits, 10, 5, true);
  if (dtype == Dtype::Float8E4M3) return decode_small(bits, 3, 4, false);
  if (dtype == Dtype::Float8E5M2) return decode_small(bits, 2, 5, true);
  const uint32_t word = static_cast<uint32_t>(dtype == Dtype::BFloat16 ? bits << 16 : bits);
  float x;
  std::memcpy(&x, &word, sizeof x);
  return x;
}

inline double round_to_nearest(Dtype dtype, double x) { return decode(dtype, encode(dtype, x)); }

// The neighbour of x towards minus infinity; x is a value of the format, but not its lowest. Below
// the lowest finite value it is minus infinity, even if the format has no infinity.
inline double below(Dtype dtype, double x) {
  if (dtype == Dtype::Float8E4M3 && x == -448) return -std::numeric_limits<double>::infinity();
  const uint64_t sign = uint64_t{1} << (8 * element_size(dtype) - 1);
  if (x == 0) return decode(dtype, sign | 1);
  const uint64_t bits = encode(dtype, x);
  return decode(dtype, x > 0 ? bits - 1 : bits + 1);
}

inline double largest_finite(Dtype dtype) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  if (saturates(dtype)) return round_to_nearest(dtype, std::numeric_limits<double>::max());
  return below(dtype, infinity);
}
inline double nearest_finite(Dtype dtype, double x) {
  const double nearest = round_to_nearest(dtype, x);
  return std::isinf(nearest) ? std::copysign(largest_finite(dtype), x) : nearest;
}

// The largest value of the format that is at most x, or less than x. It is infinite only if x is,
// and never in saturating formats; minus infinity also means that there is none.
inline double round_down(Dtype dtype, double x) {
  if (std::isinf(x)) return x > 0 && saturates(dtype) ? largest_finite(dtype) : x;
  const double nearest = round_to_nearest(dtype, x);
  return nearest <= x ? nearest : below(dtype, nearest);
}
inline double round_below(Dtype dtype, double x) {
  const double value = round_down(dtype, x);
  return value < x ? value : below(dtype, value);
}
// The smallest value of the format that is at least x.
inline double round_up(Dtype dtype, double x) { return -round_down(dtype, -x); }

}  // namespace torchinit
