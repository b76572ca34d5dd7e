// What to fill: a distribution with its parameters, prepared once on the host for one dtype.
//
// Everything a kernel needs besides the key, the place and the memory. The structures are plain
// data, shared by every instruction set and passed by value to CUDA kernels.
#pragma once

#include <cstdint>

#include "../base/platform.h"

namespace torchinit {

enum class Distribution : int { Words, Uniform, Normal, TruncatedNormal, Constant };

// Words go to 32- or 64-bit integers, every other distribution to floating point.
enum class Dtype : int {
  Float64,
  Float32,
  Float16,
  BFloat16,
  Int32,
  Int64,
  Float8E4M3,  // torch.float8_e4m3fn: no infinity
  Float8E5M2,
};

TORCHINIT_INLINE constexpr int element_size(Dtype dtype) {
  return dtype == Dtype::Float64 || dtype == Dtype::Int64      ? 8
         : dtype == Dtype::Float32 || dtype == Dtype::Int32    ? 4
         : dtype == Dtype::Float16 || dtype == Dtype::BFloat16 ? 2
                                                               : 1;
}

// How the random words become values. A distribution may have several transforms, chosen by its
// parameters; each is a sampler in math/distributions.h.
enum class Transform : int16_t {
  Words,
  Uniform,         // rounding cannot leave the interval
  ClampedUniform,  // it can
  WideUniform,     // an interval so short that float32 would lose it: in double precision
  Normal,
  TruncatedWithin2,  // bounds within two standard deviations: no logarithm
  TruncatedWithin3,  // within three
  Truncated,         // any bounds that keep a fair part of the mass
  WideTruncated,     // narrow or remote bounds: double precision whatever the dtype
  TruncatedTail,     // beyond the reach of a double's probabilities: in their logarithms
  Constant,
};

template <class T>
struct NormalParameters {
  T mean, std;
};

// origin + x * scale, kept within values of the destination's dtype: x the random word as a signed
// integer, or a normal quantile.
template <class T>
struct Affine {
  T origin, scale;
  T min, max;
};

// Phi^-1(1/2 + q) with q = centre + s * slope, s the word as a signed integer.
struct TruncatedCentreParameters {
  float centre, slope;
  Affine<float> affine;
};

// One half of the signed words, the negative or the other: probability p = base + (k + 1/2) * slope
// at distance k from the end of the range, measured from the nearer tail; the quantile of p,
// negated where flip is set.
template <class T>
struct TruncatedHalf {
  T base, slope;
  T flip;  // +0 or -0: its sign bit is combined with the quantile's
};

template <class T>
struct TruncatedParameters {
  TruncatedHalf<T> half[2];
  Affine<T> affine;
};

// Beyond |near| standard deviations: x = near + delta, where the survivor function has fallen by
// the factor s = base + (k + 1/2) * slope. The value is bound + std * delta (std signed outward).
struct TruncatedTailParameters {
  double base[2], slope[2];
  double near, near_correction;
  double bound, std;
  double min, max;
};

struct Plan {
  Transform transform;
  int16_t never_subnormal;  // 1 where no float32 value can be; no bool, to have no padding
  Dtype dtype;
  union {
    Affine<float> uniform32;   // Uniform, ClampedUniform
    Affine<double> uniform64;  // the same, and WideUniform
    NormalParameters<float> normal32;
    NormalParameters<double> normal64;
    TruncatedCentreParameters centre;
    TruncatedParameters<float> truncated32;
    TruncatedParameters<double> truncated64;  // also WideTruncated
    TruncatedTailParameters tail;
    uint64_t pattern;  // Constant: the bits of one element
  };
};

// Parameters by distribution: Uniform (low, high); Normal (mean, std);
// TruncatedNormal (mean, std, a, b); Constant (value); Words none.
// They must have been checked: finite where required, std >= 0, low <= high, a <= b.
Plan make_plan(Distribution distribution, Dtype dtype, const double parameters[4]);

}  // namespace torchinit
