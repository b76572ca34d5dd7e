// The parameters of the samplers: plain data, made on the host by job/plan.cpp, shared by every
// instruction set and passed by value to CUDA kernels.
#pragma once

namespace torchinit {

template <class T>
struct NormalParameters {
  T mean, std;
};

// (mean + std * z) * factor, kept within values of the destination's dtype. The factor, a power of
// two, keeps the product of std and a radius from overflowing when the value does not.
template <class T>
struct ClampedNormalParameters {
  NormalParameters<T> normal;
  T factor;
  T min, max;
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

// One half of the signed words, the negative or the other. A word at distance k from the end of the
// range has probability p = base + (k + 1/2) * slope, measured from the nearer tail; its value is
// the quantile of p, negated if flip is set.
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
// the factor s = base + (k + 1/2) * slope. The value is bound + std * delta (std is signed
// outward).
struct TruncatedTailParameters {
  double base[2], slope[2];
  double near, near_correction;
  double bound, std;
  double min, max;
};

}  // namespace torchinit
