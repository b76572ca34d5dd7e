// Householder reflectors from Gaussian vectors (Stewart 1980).
//
// A vector x of n independent N(0, 1) becomes v with v_0 = 1, so that H = I - 2 v v^T / |v|^2 is
// orthogonal and maps x onto a multiple of the first unit vector. The order of every addition is
// part of the definition, so v has the same bits everywhere: element i is added to partial sum i
// mod kPartialSums, in double precision, and the partial sums are added pairwise.
#pragma once

#include <cstdint>

#include "../base/target.h"
#include "../simd/scalar.h"

namespace torchinit::TORCHINIT_TARGET {

constexpr int kPartialSums = 64;  // a power of two

// Adds the squares of elements to the partial sums; x is the vector's element number 0, or any
// multiple of kPartialSums.
template <class T>
TORCHINIT_INLINE void add_squares(const T* x, int64_t n, double sums[kPartialSums]) {
  const auto add = [&](int64_t i, int count) {
    for (int lane = 0; lane < count; ++lane)
      sums[lane] += static_cast<double>(x[i + lane]) * static_cast<double>(x[i + lane]);
  };
  int64_t i = 0;
  for (; i + kPartialSums <= n; i += kPartialSums) add(i, kPartialSums);
  add(i, static_cast<int>(n - i));
}

TORCHINIT_INLINE double sum_pairwise(double sums[kPartialSums]) {
  for (int count = kPartialSums / 2; count > 0; count /= 2)
    for (int lane = 0; lane < count; ++lane) sums[lane] += sums[lane + count];
  return sums[0];
}

// v is x times scale, except for its first element, which is 1.
template <class T>
struct Reflector {
  T scale;
  T half_norm;  // |v|^2 / 2
  T sign;       // of (H x)_1: the sign that R's diagonal would have in a QR factorisation
};

template <class T>
TORCHINIT_INLINE Reflector<T> make_reflector(T first, double square_sum) {
  const double norm = ScalarLanes::sqrt(square_sum);
  const double x = static_cast<double>(first);
  const bool negative = x < 0;
  // A vector of zeros (possible for a single element) is treated as the first unit vector.
  if (norm == 0) return {T(0), T(0.5), T(-1)};
  const double head = negative ? x - norm : x + norm;  // away from zero: nothing cancels
  return {static_cast<T>(1 / head), static_cast<T>(norm / (negative ? -head : head)),
          negative ? T(1) : T(-1)};
}

}  // namespace torchinit::TORCHINIT_TARGET
