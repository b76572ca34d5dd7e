// Values and neighbours of the floating-point formats, for the preparation of bounds on the host.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "math/rounding.h"
#include "plan.h"

namespace torchinit {

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
  if (x != x) return dtype == Dtype::Float32 ? bits : dtype == Dtype::Float16 ? 0x7e00u : 0x7fc0u;
  if (dtype == Dtype::Float16) return TORCHINIT_TARGET::round_to_float16(bits);
  if (dtype == Dtype::BFloat16) return TORCHINIT_TARGET::round_to_bfloat16(bits) >> 16;
  return bits;
}

inline double decode(Dtype dtype, uint64_t bits) {
  if (dtype == Dtype::Float64) {
    double x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
  }
  if (dtype == Dtype::Float16) {
    const int exponent = static_cast<int>(bits >> 10) & 31;
    const double significand = static_cast<double>(bits & 1023);
    const double magnitude = exponent == 31  ? std::numeric_limits<double>::infinity()
                             : exponent == 0 ? std::ldexp(significand, -24)
                                             : std::ldexp(significand + 1024, exponent - 25);
    return bits & 0x8000 ? -magnitude : magnitude;
  }
  const uint32_t word = static_cast<uint32_t>(dtype == Dtype::BFloat16 ? bits << 16 : bits);
  float x;
  std::memcpy(&x, &word, sizeof x);
  return x;
}

inline double round_to_nearest(Dtype dtype, double x) { return decode(dtype, encode(dtype, x)); }

// The neighbour of x, a finite value of the format, towards minus infinity.
inline double below(Dtype dtype, double x) {
  const uint64_t sign = uint64_t{1} << (8 * element_size(dtype) - 1);
  if (x == 0) return decode(dtype, sign | 1);
  const uint64_t bits = encode(dtype, x);
  return decode(dtype, x > 0 ? bits - 1 : bits + 1);
}

// The largest value of the format that is at most x, or less than x.
inline double round_down(Dtype dtype, double x) {
  if (std::isinf(x)) return x;
  const double nearest = round_to_nearest(dtype, x);
  return nearest <= x ? nearest : std::isinf(nearest) ? nearest : below(dtype, nearest);
}
inline double round_below(Dtype dtype, double x) {
  const double value = round_down(dtype, x);
  return value < x ? value : below(dtype, value);
}
// The smallest value of the format that is at least x.
inline double round_up(Dtype dtype, double x) { return -round_down(dtype, -x); }

}  // namespace torchinit
