// From a distribution's parameters to the constants of its fastest adequate transform.
#include "plan.h"

#include <cmath>
#include <limits>

#include "formats.h"
#include "lanes/scalar.h"
#include "math/inverse_normal.h"
#include "math/normal_cdf.h"

namespace torchinit {
namespace {

// Smallest and largest value of a format that an interval allows.
struct Bounds {
  double min, max;
};

// If the interval holds no value of the format, both are the value nearest to its lower end.
Bounds bounds_within(Dtype dtype, double min, double max, double low) {
  if (min <= max) return {min, max};
  const double nearest = round_to_nearest(dtype, low);
  return {nearest, nearest};
}

Plan constant(Dtype dtype, double value) {
  Plan plan{};
  plan.transform = Transform::Constant;
  plan.dtype = dtype;
  plan.pattern = encode(dtype, value);
  return plan;
}

// Uniform on [low, low + width) or its closure: the bounds tell.
Plan uniform(Dtype dtype, double low, double width, Bounds bounds) {
  Plan plan{};
  plan.transform = Transform::Uniform;
  plan.dtype = dtype;
  if (dtype == Dtype::Float64)
    plan.uniform64 = {low, width, bounds.min, bounds.max};
  else
    plan.uniform32 = {static_cast<float>(low), static_cast<float>(width),
                      static_cast<float>(bounds.min), static_cast<float>(bounds.max)};
  return plan;
}

Plan normal(Dtype dtype, double mean, double std) {
  Plan plan{};
  plan.transform = Transform::Normal;
  plan.dtype = dtype;
  if (dtype == Dtype::Float64)
    plan.normal64 = {mean, std};
  else
    plan.normal32 = {static_cast<float>(mean), static_cast<float>(std)};
  return plan;
}

// The largest |z| that the Box-Muller transform makes: sqrt(-2 log 2^-32), sqrt(-2 log 2^-54).
double normal_reach(Dtype dtype) { return dtype == Dtype::Float64 ? 8.66 : 6.67; }

// Below this much of the mass, float32 probabilities lack digits.
constexpr double kSmallMass = 0x1p-6;
// From here on the probabilities of the tail leave the range of a double.
constexpr double kRemote = 30;
// Where the density changes by less than this over the interval it is taken as constant.
constexpr double kFlat = 1e-7;

// log(x * M(x)), M(x) = S(x) / phi(x) Mills' ratio of a remote x.
double mills_correction(double x) {
  return TORCHINIT_TARGET::mills_correction<TORCHINIT_TARGET::ScalarLanes>(1 / x / x);
}

// exp(-y), y >= 0
double exp_minus(double y) { return gaussian(std::sqrt(2 * y)); }

template <class T>
TruncatedParameters<T> truncated(double alpha, double beta, double mass, double unit,
                                 Affine<T> affine) {
  TruncatedParameters<T> p;
  const T step = static_cast<T>(mass * unit);
  const T plus = T(0), minus = -T(0);
  const T lower_tail_alpha = static_cast<T>(normal_cdf(alpha));
  const T lower_tail_beta = static_cast<T>(normal_cdf(beta));
  const T upper_tail_alpha = static_cast<T>(normal_cdf(-alpha));
  const T upper_tail_beta = static_cast<T>(normal_cdf(-beta));
  if (alpha > 0) {  // all on the right: probabilities of the upper tail for both halves
    p.half[0] = {upper_tail_alpha, -step, minus};
    p.half[1] = {upper_tail_beta, step, minus};
  } else if (beta < 0) {
    p.half[0] = {lower_tail_alpha, step, plus};
    p.half[1] = {lower_tail_beta, -step, plus};
  } else {
    p.half[0] = {lower_tail_alpha, step, plus};
    p.half[1] = {upper_tail_beta, step, minus};
  }
  p.affine = affine;
  return p;
}

// near <= x <= far in standard deviations on one side of the mean.
TruncatedTailParameters truncated_tail(double near, double far, double bound, double std,
                                       bool right, double unit, Bounds bounds) {
  TruncatedTailParameters p;
  const double near_correction = mills_correction(near);
  double remaining = 0;  // S(far) / S(near)
  if (!std::isinf(far))
    remaining = exp_minus((far - near) * (0.5 * (far + near))) * (near / far) /
                exp_minus(std::fmax(0, mills_correction(far) - near_correction));
  const double step = (1 - remaining) * unit;
  const int near_half = right ? 0 : 1;  // values rise with the word on either side
  p.base[near_half] = 1;
  p.slope[near_half] = -step;
  p.base[1 - near_half] = remaining;
  p.slope[1 - near_half] = step;
  p.near = near;
  p.near_correction = near_correction;
  p.bound = bound;
  p.std = right ? std : -std;
  p.min = bounds.min;
  p.max = bounds.max;
  return p;
}

template <class T>
Affine<T> affine(double mean, double std, Bounds bounds) {
  return {static_cast<T>(mean), static_cast<T>(std), static_cast<T>(bounds.min),
          static_cast<T>(bounds.max)};
}

Plan truncated_normal(Dtype dtype, double mean, double std, double a, double b) {
  const Bounds bounds = bounds_within(dtype, round_up(dtype, a), round_down(dtype, b), a);
  if (bounds.min == bounds.max) return constant(dtype, bounds.min);
  if (std == 0) return constant(dtype, std::fmin(std::fmax(mean, bounds.min), bounds.max));

  const double reach = normal_reach(dtype);
  if (round_to_nearest(dtype, mean - reach * std) >= a &&
      round_to_nearest(dtype, mean + reach * std) <= b)
    return normal(dtype, mean, std);

  const double alpha = (a - mean) / std, beta = (b - mean) / std;
  const double near = std::fmax(0, std::fmax(alpha, -beta));
  if ((beta - alpha) * std::fmax(1, near) <= kFlat) return uniform(dtype, a, b - a, bounds);

  Plan plan{};
  plan.dtype = dtype;
  // A 32-bit word cuts the mass into 2^32 steps; of a 64-bit word 53 bits are used.
  const double unit = dtype == Dtype::Float64 ? 0x1p-53 : 0x1p-32;
  if (near > kRemote) {
    const bool right = alpha > 0;
    plan.transform = Transform::TruncatedTail;
    plan.tail =
        truncated_tail(near, right ? beta : -alpha, right ? a : b, std, right, unit, bounds);
    return plan;
  }
  const double mass = alpha > 0  ? normal_cdf(-alpha) - normal_cdf(-beta)
                      : beta < 0 ? normal_cdf(beta) - normal_cdf(alpha)
                                 : 1 - normal_cdf(alpha) - normal_cdf(-beta);
  if (dtype == Dtype::Float64) {
    plan.transform = Transform::Truncated;
    plan.truncated64 =
        truncated<double>(alpha, beta, mass, unit, affine<double>(mean, std, bounds));
  } else if (mass < kSmallMass) {
    plan.transform = Transform::TruncatedWide;
    plan.truncated64 =
        truncated<double>(alpha, beta, mass, unit, affine<double>(mean, std, bounds));
  } else if (alpha >= -3 && beta <= 3) {
    plan.transform = Transform::TruncatedCentre;
    const double middle = 0.5 * (normal_cdf(alpha) - normal_cdf(-beta));
    plan.centre = {static_cast<float>(middle + 0.5 * mass * unit), static_cast<float>(mass * unit),
                   affine<float>(mean, std, bounds)};
  } else {
    plan.transform = Transform::Truncated;
    plan.truncated32 = truncated<float>(alpha, beta, mass, unit, affine<float>(mean, std, bounds));
  }
  return plan;
}

}  // namespace

Plan make_plan(Distribution distribution, Dtype dtype, const double parameters[4]) {
  const double first = parameters[0], second = parameters[1];
  switch (distribution) {
    case Distribution::Words: {
      Plan plan{};
      plan.transform = Transform::Words;
      plan.dtype = dtype;
      return plan;
    }
    case Distribution::Uniform: {
      if (first == second) return constant(dtype, first);
      const Bounds bounds =
          bounds_within(dtype, round_up(dtype, first), round_below(dtype, second), first);
      return uniform(dtype, first, second - first, bounds);
    }
    case Distribution::Normal:
      return normal(dtype, first, second);
    case Distribution::TruncatedNormal:
      return truncated_normal(dtype, first, second, parameters[2], parameters[3]);
    case Distribution::Constant:
      break;
  }
  return constant(dtype, first);
}

}  // namespace torchinit
