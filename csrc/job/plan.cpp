// From a distribution's parameters to the constants of its fastest adequate transform.
#include "plan.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "../base/float_environment.h"
#include "../math/inverse_normal.h"
#include "../math/normal_cdf.h"
#include "../simd/scalar.h"
#include "formats.h"

namespace torchinit {
namespace {

// Smallest and largest value of a format that an interval allows. Zeros have the signs that clamp
// in math/samplers.h wants.
struct Bounds {
  double min, max;

  Bounds(double smallest, double largest)
      : min(smallest == 0 ? 0.0 : smallest), max(largest == 0 ? -0.0 : largest) {}
};

// If the interval holds no value of the format, both are the finite value nearest its lower end.
Bounds bounds_or_nearest(Dtype dtype, double low, double min, double max) {
  if (min <= max) return {min, max};
  const double nearest = nearest_finite(dtype, low);
  return {nearest, nearest};
}
Bounds bounds_within(Dtype dtype, double a, double b) {  // [a, b]
  return bounds_or_nearest(dtype, a, round_up(dtype, a), round_down(dtype, b));
}
Bounds bounds_below(Dtype dtype, double a, double b) {  // [a, b)
  return bounds_or_nearest(dtype, a, round_up(dtype, a), round_below(dtype, b));
}

template <class T>
Affine<T> affine(double origin, double scale, Bounds bounds) {
  return {static_cast<T>(origin), static_cast<T>(scale), static_cast<T>(bounds.min),
          static_cast<T>(bounds.max)};
}

Plan constant(Dtype dtype, double value) {
  Plan plan{};
  plan.transform = Transform::Constant;
  plan.dtype = dtype;
  plan.pattern = encode(dtype, value);
  return plan;
}

// Whether no float32 value is subnormal: fma(x, scale, origin) with x a multiple of `unit` is a
// multiple of the last of the 24 digits of either term, so it is zero or no less.
bool never_subnormal(double unit, float scale, float origin) {
  constexpr double least = std::numeric_limits<float>::min() * 0x1p23;
  return unit * std::fabs(scale) >= least && (origin == 0 || std::fabs(origin) >= least);
}
bool never_subnormal(double unit, const Affine<float>& p) {
  const auto is_subnormal = [](float x) { return std::fpclassify(x) == FP_SUBNORMAL; };
  return never_subnormal(unit, p.scale, p.origin) && !is_subnormal(p.min) && !is_subnormal(p.max);
}
// Words are integers. Of quantiles, and of the factors of Box and Muller, what is not zero is at
// least 2^-63, for a word is at least 2^-38 of the distribution, and has 24 digits.
constexpr double kWordUnit = 1, kNormalUnit = 0x1p-86;

// Uniform on an interval [a, b] or [a, b), depending on the bounds. `computed` are the bounds in T,
// which also determine the scale of the narrower dtypes.
template <class T>
Plan uniform(Dtype dtype, double a, double b, Bounds bounds, Bounds computed) {
  // The signed word runs from -2^31 to 2^31 (rounded), in float64 from -2^52 to 2^52 - 1.
  constexpr bool single = sizeof(T) == 4;
  const T lowest = single ? T(-0x1p31) : T(-0x1p52);
  const T highest = single ? T(0x1p31) : T(0x1p52) - 1;
  const double width = b - a, middle = a + 0.5 * width;
  const double step = width * (single ? 0x1p-32 : 0x1p-53);
  const T origin = static_cast<T>(middle);

  // If only rounding leads out of the interval, a scale one or two units in the last place smaller
  // keeps the values inside without a clamp.
  const auto inside = [&](T scale) {
    return std::fma(lowest, scale, origin) >= computed.min &&
           std::fma(highest, scale, origin) <= computed.max;
  };
  T smaller = static_cast<T>(step);
  for (int i = 0; i < 2 && !inside(smaller); ++i) smaller = std::nextafter(smaller, T(0));
  const bool is_inside = inside(smaller);
  const T scale = is_inside ? smaller : static_cast<T>(step);

  Plan plan{};
  plan.dtype = dtype;
  constexpr double range = std::numeric_limits<T>::max();
  if (single &&
      (step < std::numeric_limits<float>::min() || step > range || std::fabs(middle) > range)) {
    plan.transform = Transform::WideUniform;
    plan.uniform64 = affine<double>(middle, width * 0x1p-53, bounds);
  } else {
    const bool exact = is_inside && dtype == (single ? Dtype::Float32 : Dtype::Float64);
    plan.transform = exact ? Transform::Uniform : Transform::ClampedUniform;
    if (single) {
      plan.uniform32 = affine<float>(origin, scale, bounds);
      plan.never_subnormal = never_subnormal(kWordUnit, plan.uniform32);
    } else {
      plan.uniform64 = affine<double>(origin, scale, bounds);
    }
  }
  return plan;
}

Plan uniform(Dtype dtype, double a, double b, Bounds bounds, Bounds bounds32) {
  return dtype == Dtype::Float64 ? uniform<double>(dtype, a, b, bounds, bounds)
                                 : uniform<float>(dtype, a, b, bounds, bounds32);
}

// An upper bound of the plain normal's |z|: sqrt(-2 log 2^-31) = 6.556, in float64 sqrt(-2 log
// 2^-52) = 8.490, with room for rounding.
template <class T>
constexpr double kReach = sizeof(T) == 4 ? 6.57 : 8.5;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

template <class T>
NormalParameters<T> normal_parameters(double mean, double std) {
  return {static_cast<T>(mean), static_cast<T>(std)};
}

// Mean and std are divided by 2^scale, so that no sum or product of the sampler overflows; values
// are scaled back at the end, and only those beyond the range of T become infinite.
template <class T>
ClampedNormalParameters<T> clamped_normal(double mean, double std, int scale, Bounds bounds) {
  using Limits = std::numeric_limits<T>;
  return {normal_parameters<T>(std::ldexp(mean, -scale), std::ldexp(std, -scale)),
          static_cast<T>(std::ldexp(1.0, std::min(scale, Limits::max_exponent - 1))),
          static_cast<T>(bounds.min), static_cast<T>(bounds.max)};
}

// The scale for which no sum or product of the sampler overflows; zero if none is needed.
template <class T>
int scale_of_normal(double mean, double std) {
  using Limits = std::numeric_limits<T>;
  const bool fits = std <= Limits::max() / kReach<T> && std::fabs(mean) <= Limits::max();
  if (fits || std::isinf(mean) || std::isinf(std)) return 0;
  return std::max(std::ilogb(mean), std::ilogb(std) + 3) - (Limits::max_exponent - 4);
}

Plan normal(Dtype dtype, double mean, double std, Bounds bounds) {
  const bool wide = dtype == Dtype::Float64;
  const int scale = wide ? scale_of_normal<double>(mean, std) : scale_of_normal<float>(mean, std);
  Plan plan{};
  plan.dtype = dtype;
  if (scale == 0 && bounds.min == -kInfinity && bounds.max == kInfinity) {
    plan.transform = Transform::Normal;
    if (wide) {
      plan.normal64 = normal_parameters<double>(mean, std);
    } else {
      plan.normal32 = normal_parameters<float>(mean, std);
      plan.never_subnormal = never_subnormal(kNormalUnit, plan.normal32.std, plan.normal32.mean);
    }
    return plan;
  }
  plan.transform = Transform::ClampedNormal;
  if (wide) {
    plan.clamped_normal64 = clamped_normal<double>(mean, std, scale, bounds);
  } else {
    const auto& p = plan.clamped_normal32 = clamped_normal<float>(mean, std, scale, bounds);
    plan.never_subnormal =
        never_subnormal(kNormalUnit, {p.normal.mean, p.normal.std, p.min, p.max});
  }
  return plan;
}

Plan normal(Dtype dtype, double mean, double std) {
  return normal(dtype, mean, std, Bounds(-kInfinity, kInfinity));
}

// Whether no value of the plain normal, rounded to a format, leaves [a, b].
bool always_within(Dtype format, double mean, double std, double a, double b) {
  const double largest = format == Dtype::Float64 ? kReach<double> : kReach<float>;
  const double reach = largest * std;
  return round_to_nearest(format, mean - reach) >= a && round_to_nearest(format, mean + reach) <= b;
}

// Below this fraction of the mass, float32 probabilities lack digits.
constexpr double kSmallMass = 0x1p-6;
// From here on the probabilities of the tail leave the range of a double.
constexpr double kRemote = 30;
// If the density changes by less than this over the interval, it is taken as constant.
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

Plan truncated_normal(Dtype dtype, double mean, double std, double a, double b) {
  const Bounds bounds = bounds_within(dtype, a, b);
  if (bounds.min == bounds.max) return constant(dtype, bounds.min);
  if (std == 0) return constant(dtype, std::fmin(std::fmax(mean, bounds.min), bounds.max));
  // The dtypes of 32-bit words take float32's transform, and are then kept within the bounds.
  if (always_within(dtype == Dtype::Float64 ? dtype : Dtype::Float32, mean, std, a, b))
    return always_within(dtype, mean, std, a, b) ? normal(dtype, mean, std)
                                                 : normal(dtype, mean, std, bounds);

  const double alpha = (a - mean) / std, beta = (b - mean) / std;
  const double near = std::fmax(0, std::fmax(alpha, -beta));
  if ((beta - alpha) * std::fmax(1, near) <= kFlat)
    return uniform(dtype, a, b, bounds, bounds_within(Dtype::Float32, a, b));

  Plan plan{};
  plan.dtype = dtype;
  // The mass is cut into steps: 2^32 in float32, 2^53 in double precision.
  constexpr double step32 = 0x1p-32, step64 = 0x1p-53;
  if (near > kRemote) {
    const bool right = alpha > 0;
    plan.transform = Transform::TruncatedTail;
    plan.tail =
        truncated_tail(near, right ? beta : -alpha, right ? a : b, std, right, step64, bounds);
    return plan;
  }
  const double mass = alpha > 0  ? normal_cdf(-alpha) - normal_cdf(-beta)
                      : beta < 0 ? normal_cdf(beta) - normal_cdf(alpha)
                                 : 1 - normal_cdf(alpha) - normal_cdf(-beta);
  // 0.04 / 0.02 may be slightly more than 2.
  const auto within = [&](double sigmas) {
    return alpha >= -sigmas - kFlat && beta <= sigmas + kFlat;
  };
  constexpr double range = std::numeric_limits<float>::max();
  if (dtype == Dtype::Float64 || mass < kSmallMass || std::fabs(mean) > range || std > range) {
    plan.transform = dtype == Dtype::Float64 ? Transform::Truncated : Transform::WideTruncated;
    plan.truncated64 =
        truncated<double>(alpha, beta, mass, step64, affine<double>(mean, std, bounds));
  } else if (within(3)) {
    plan.transform = within(2) ? Transform::TruncatedWithin2 : Transform::TruncatedWithin3;
    const double slope = mass * step32;
    const double middle = 0.5 * (normal_cdf(alpha) - normal_cdf(-beta));
    plan.centre = {static_cast<float>(middle + 0.5 * slope), static_cast<float>(slope),
                   affine<float>(mean, std, bounds)};
    plan.never_subnormal = std::fabs(plan.centre.centre) >= 0x1p-40f &&  // or else q may be less
                           never_subnormal(kNormalUnit, plan.centre.affine);
  } else {
    plan.transform = Transform::Truncated;
    plan.truncated32 =
        truncated<float>(alpha, beta, mass, step32, affine<float>(mean, std, bounds));
    plan.never_subnormal = never_subnormal(kNormalUnit, plan.truncated32.affine);
  }
  return plan;
}

}  // namespace

Plan make_plan(Distribution distribution, Dtype dtype, const double parameters[4]) {
  const FloatEnvironment environment;  // the constants are part of the bits
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
      const Bounds bounds = bounds_below(dtype, first, second);
      if (bounds.min == bounds.max) return constant(dtype, bounds.min);
      return uniform(dtype, first, second, bounds, bounds_below(Dtype::Float32, first, second));
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

const char* name_of(Transform transform) {
  switch (transform) {
    case Transform::Words:
      return "words";
    case Transform::Uniform:
      return "uniform";
    case Transform::ClampedUniform:
      return "clamped-uniform";
    case Transform::WideUniform:
      return "wide-uniform";
    case Transform::Normal:
      return "normal";
    case Transform::ClampedNormal:
      return "clamped-normal";
    case Transform::TruncatedWithin2:
      return "truncated-within-2";
    case Transform::TruncatedWithin3:
      return "truncated-within-3";
    case Transform::Truncated:
      return "truncated";
    case Transform::WideTruncated:
      return "wide-truncated";
    case Transform::TruncatedTail:
      return "truncated-tail";
    case Transform::Constant:
      break;
  }
  return "constant";
}

}  // namespace torchinit
