// A plan: a distribution with its parameters, prepared once on the host for one dtype.
//
// It has everything that a kernel needs except the key, the box and the memory. The structures are
// plain data, shared by every instruction set and passed by value to CUDA kernels.
#pragma once

#include <cstdint>

#include "../math/parameters.h"
#include "dtype.h"

namespace torchinit {

enum class Distribution : int { Words, Uniform, Normal, TruncatedNormal, Constant };

// In the order of Python's table (src/torchinit/schemes/distributions.py).
constexpr const char* kDistributionNames[] = {"WORDS", "UNIFORM", "NORMAL", "TRUNCATED_NORMAL",
                                              "CONSTANT"};
constexpr int kDistributions = sizeof kDistributionNames / sizeof *kDistributionNames;

// The ways from random words to values. A distribution may have several transforms, chosen by its
// parameters; each is a sampler in math/samplers.h.
enum class Transform : int16_t {
  Words,
  Uniform,         // rounding cannot lead out of the interval
  ClampedUniform,  // rounding could, so values are kept within
  WideUniform,     // an interval too short or too long for float32: in double precision
  Normal,
  ClampedNormal,     // rounding would lead out of the bounds, or parameters nearly out of the range
  TruncatedWithin2,  // bounds within two standard deviations: no logarithm
  TruncatedWithin3,  // bounds within three: also without
  Truncated,         // bounds that keep enough of the mass
  WideTruncated,     // what float32 lacks digits or range for: double precision whatever the dtype
  TruncatedTail,     // beyond the reach of a double's probabilities: in their logarithms
  Constant,          // stays last
};

struct Plan {
  Transform transform;
  int16_t never_subnormal;  // 1 if no float32 value is subnormal; not a bool, to avoid padding
  Dtype dtype;
  union {
    Affine<float> uniform32;   // Uniform, ClampedUniform
    Affine<double> uniform64;  // Uniform, ClampedUniform, WideUniform
    NormalParameters<float> normal32;
    NormalParameters<double> normal64;
    ClampedNormalParameters<float> clamped_normal32;
    ClampedNormalParameters<double> clamped_normal64;
    TruncatedCentreParameters centre;
    TruncatedParameters<float> truncated32;
    TruncatedParameters<double> truncated64;  // Truncated, WideTruncated
    TruncatedTailParameters tail;
    uint64_t pattern;  // Constant: the bits of one element
  };
};

// Parameters by distribution: Uniform (low, high); Normal (mean, std);
// TruncatedNormal (mean, std, a, b); Constant (value); Words none.
// The parameters must have been checked: finite where required, std >= 0, low <= high, a <= b.
Plan make_plan(Distribution distribution, Dtype dtype, const double parameters[4]);

// The transform's name in lower case, such as "clamped-normal".
const char* name_of(Transform transform);

}  // namespace torchinit
