// The largest errors of the elementary functions in units in the last place, against long double.
//
//     accuracy STRIDE THREADS SAMPLES FACTOR
//
// float32 functions: every STRIDE-th argument of the interval; 1 tries all. float64 functions:
// SAMPLES arguments, spread evenly over the bit patterns of the interval. Results are multiplied by
// FACTOR first: 1, or another value to show that errors are found. Prints one line for each
// function: name, interval, arguments tried, largest error, and its argument.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#define TORCHINIT_TARGET measured
#if defined(__FMA__)
#define TORCHINIT_HARDWARE_FMA 1
#endif
#include "../csrc/job/plan.h"
#include "../csrc/math/inverse_normal.h"
#include "../csrc/math/samplers.h"
#include "../csrc/simd/scalar.h"

namespace {

using namespace torchinit::measured;
using L = ScalarLanes;
using Real = long double;

constexpr Real kQuarterPi = 0.785398163397448309615660845819875721L;
constexpr Real kRootHalf = 0.707106781186547524400844362104849039L;
constexpr Real kInverseRootTwoPi = 0.398942280401432677939946059934381868L;

struct Options {
  uint64_t stride, samples;
  int threads;
  double factor;
};

struct Measured {
  double error = -1, at = 0;
};

Measured worse(Measured a, Measured b) { return a.error >= b.error ? a : b; }

// Distance of a value of format T from the truth, in the spacing of T around the truth.
template <class T>
double ulps(T computed, Real truth) {
  if (!std::isfinite(computed)) return std::numeric_limits<double>::infinity();
  if (truth == computed) return 0;
  using Limits = std::numeric_limits<T>;
  const int exponent =
      std::max(truth == 0 ? Limits::min_exponent : std::ilogb(truth), Limits::min_exponent - 1);
  return static_cast<double>(
      std::ldexp(std::fabs(computed - truth), Limits::digits - 1 - exponent));
}

uint64_t bits_of(float x) { return static_cast<uint32_t>(L::bits(x)); }
uint64_t bits_of(double x) { return L::bits(x); }

// From an index to an argument: for float32 the bits themselves, from those of the first argument.
struct AllFloats {
  uint64_t first, count, step;

  AllFloats(float low, float high, const Options& options)
      : first(bits_of(low)),
        count((bits_of(high) - first) / options.stride + 1),
        step(options.stride) {}
  float operator()(uint64_t i) const {
    return L::from_bits(static_cast<uint32_t>(first + i * step));
  }
};

// For float64 a Weyl sequence in the bits, so that a sample of any size is even.
struct SampledDoubles {
  uint64_t first, width, count;

  SampledDoubles(double low, double high, const Options& options)
      : first(bits_of(low)), width(bits_of(high) - first + 1), count(options.samples) {}
  double operator()(uint64_t i) const {
    const unsigned __int128 product =
        static_cast<unsigned __int128>((i + 1) * 0x9e3779b97f4a7c15u) * width;
    return L::from_bits(first + static_cast<uint64_t>(product >> 64));
  }
};

// The largest error over all arguments, by threads that take pieces as they become free.
template <class Arguments, class Error>
Measured largest(const Arguments& arguments, int threads, const Error& error) {
  constexpr uint64_t piece = 1 << 16;
  std::atomic<uint64_t> next{0};
  std::mutex lock;
  Measured result;
  const auto work = [&] {
    Measured mine;
    for (uint64_t from; (from = next.fetch_add(piece)) < arguments.count;)
      for (uint64_t i = from; i < std::min(from + piece, arguments.count); ++i) {
        const auto x = arguments(i);
        const double e = error(x);
        if (e > mine.error) mine = {e, static_cast<double>(x)};
      }
    const std::lock_guard<std::mutex> guard(lock);
    result = worse(mine, result);
  };
  std::vector<std::thread> pool;
  for (int i = 0; i < threads; ++i) pool.emplace_back(work);
  for (std::thread& thread : pool) thread.join();
  return result;
}

// signs: two where each argument stands for itself and its negative.
template <class Arguments, class Error>
void measure(const char* name, const char* interval, const Arguments& arguments, int signs,
             const Options& options, const Error& error) {
  const Measured m = largest(arguments, options.threads, error);
  std::printf("%s\t%s\t%llu\t%.4f\t%.17g\n", name, interval,
              static_cast<unsigned long long>(arguments.count * signs), m.error, m.at);
  std::fflush(stdout);
}

template <class F>
F sine(F x) {
  F s, c;
  sincos_eighth<L>(x, s, c);
  return s;
}
template <class F>
F cosine(F x) {
  F s, c;
  sincos_eighth<L>(x, s, c);
  return c;
}

// An odd function's error at x; infinite if the function is not odd exactly, so that one
// reference value serves both signs.
template <class F, class Function, class Truth>
double odd_error(F x, double factor, const Function& function, const Truth& truth) {
  const F value = function(x);
  if (function(-x) != -value) return std::numeric_limits<double>::infinity();
  const F result = value * static_cast<F>(factor);
  return ulps(result, truth(static_cast<Real>(x), static_cast<Real>(result)));
}

// Halley's step from a value close to the quantile, by its probability's excess over the wanted.
Real refine(Real x, Real excess) {
  const Real step = excess / (kInverseRootTwoPi * std::exp(-x * x / 2));
  return x - step / (1 + x * step / 2);
}
// Phi^-1(1/2 + q) and Phi^-1(p), each without cancellation where its argument is small.
Real quantile_of_centre(Real q, Real near) {
  return refine(near, std::erf(near * kRootHalf) / 2 - q);
}
Real quantile(Real p, Real near) { return refine(near, std::erfc(-near * kRootHalf) / 2 - p); }

template <class Arguments, class F>
void measure_elementary(const char* format, const Arguments& normals, const char* interval,
                        const Arguments& fractions, const Options& options, F) {
  const F factor = static_cast<F>(options.factor);
  const std::string suffix = std::string(" ") + format;
  // Halving is exact: this is the error of minus_two_log too.
  measure(("log" + suffix).c_str(), interval, normals, 1, options, [&](F x) {
    return ulps(minus_two_log<L, 0>(x) * F(-0.5) * factor, std::log(static_cast<Real>(x)));
  });
  const char* all = "sin, cos (pi/4) x: x in [-1, 1]";
  measure(("sin" + suffix).c_str(), all, fractions, 2, options, [&](F x) {
    return odd_error(x, options.factor, sine<F>,
                     [](Real y, Real) { return std::sin(kQuarterPi * y); });
  });
  measure(("cos" + suffix).c_str(), all, fractions, 2, options, [&](F x) {
    const F value = cosine(x);
    if (cosine(-x) != value) return std::numeric_limits<double>::infinity();
    return ulps(value * factor, std::cos(kQuarterPi * static_cast<Real>(x)));
  });
}

template <int sigmas>
void measure_centre(const char* name, const char* interval, float limit, const Options& options) {
  measure(name, interval, AllFloats(0.0f, limit, options), 2, options, [&](float q) {
    return odd_error(q, options.factor, inverse_normal_centre<L, sigmas>, quantile_of_centre);
  });
}

template <class Arguments, class F>
void measure_quantile(const char* name, const char* interval, const Arguments& arguments,
                      const Options& options, F) {
  measure(name, interval, arguments, 1, options, [&](F p) {
    const F result = inverse_normal<L>(p) * static_cast<F>(options.factor);
    return ulps(result, quantile(p, result));
  });
}

// Every stride-th of the 2^25 words from either end of the signed words, whose values are the
// remotest.
struct OuterWords {
  static constexpr uint64_t kSide = UINT64_C(1) << 25;
  uint64_t count, step;

  explicit OuterWords(const Options& options)
      : count(2 * kSide / options.stride), step(options.stride) {}
  uint32_t operator()(uint64_t i) const {
    return static_cast<uint32_t>(0x80000000u - kSide + i * step);
  }
};

// The whole sampler, from words on: what it adds to the inverse normal's error is the rounding of
// the word, of the probability and of its scale.
template <int sigmas>
void measure_truncated(const char* name, double bound, const Options& options) {
  using namespace torchinit;
  const double parameters[4] = {0, 1, -bound, bound};
  const Plan plan = make_plan(Distribution::TruncatedNormal, Dtype::Float32, parameters);
  const TruncatedCentreValue<sigmas> value{plan.centre};
  const Real mass = std::erf(bound * kRootHalf);
  measure(name, "the 2^26 outermost words", OuterWords(options), 1, options, [&](uint32_t word) {
    const float z = value.template of<L>(word) * static_cast<float>(options.factor);
    const Real q = (static_cast<int32_t>(word) + 0.5L) * 0x1p-32L * mass;
    return ulps(z, quantile_of_centre(q, z));
  });
}

void measure_single(const Options& options) {
  constexpr float tiny = std::numeric_limits<float>::min(),
                  huge = std::numeric_limits<float>::max();
  measure_elementary("float32", AllFloats(tiny, huge, options), "all positive normal floats",
                     AllFloats(0.0f, 1.0f, options), options, 0.0f);
  measure_centre<2>("inverse normal, centre 2, float32", "1/2 + q: |q| <= 0.47725", 0.47725f,
                    options);
  measure_centre<3>("inverse normal, centre 3, float32", "1/2 + q: |q| <= 0.49866", 0.49866f,
                    options);
  measure_quantile("inverse normal, tail, float32", "p in [2^-126, Phi(-3))",
                   AllFloats(tiny, 0x1.61e1fep-10f, options), options, 0.0f);
  measure_quantile("inverse normal, p - 1/2 rounded, float32", "p in [Phi(-3), Phi(3)]",
                   AllFloats(0x1.61e2p-10f, 0.99865f, options), options, 0.0f);
  measure_truncated<2>("truncated to [-2, 2], float32", 2, options);
  measure_truncated<3>("truncated to [-2.99, 2.99], float32", 2.99, options);
}

void measure_double(const Options& options) {
  constexpr double tiny = std::numeric_limits<double>::min();
  constexpr double huge = std::numeric_limits<double>::max();
  measure_elementary("float64", SampledDoubles(tiny, huge, options), "all positive normal doubles",
                     SampledDoubles(0x1p-60, 1.0, options), options, 0.0);
  // Arguments near one have small logarithms, and are few among all.
  measure("log float64", "[1/2, 2]", SampledDoubles(0.5, 2.0, options), 1, options, [&](double x) {
    return ulps(minus_two_log<L, 0>(x) * -0.5 * options.factor, std::log(static_cast<Real>(x)));
  });
  measure_quantile("inverse normal, centre, float64", "p in [0.075, 0.925]",
                   SampledDoubles(0.0750001, 0.925, options), options, 0.0);
  measure_quantile("inverse normal, middle, float64", "p in [e^-25, 0.075)",
                   SampledDoubles(1.3887944e-11, 0.0749999, options), options, 0.0);
  measure_quantile("inverse normal, far, float64", "p in [1e-307, e^-25)",
                   SampledDoubles(1e-307, 1.3887943e-11, options), options, 0.0);
}

}  // namespace

int main(int count, char** words) {
  if (count != 5) {
    std::fputs("usage: accuracy STRIDE THREADS SAMPLES FACTOR\n", stderr);
    return 2;
  }
  const Options options = {std::strtoull(words[1], nullptr, 10),
                           std::strtoull(words[3], nullptr, 10), std::atoi(words[2]),
                           std::atof(words[4])};
  measure_single(options);
  measure_double(options);
}
