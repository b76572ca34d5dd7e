// Householder reflectors from Gaussian vectors (Stewart 1980).
//
// x of n independent N(0, 1) becomes v with v_0 = 1: H = I - 2 v v^T / |v|^2 is orthogonal and maps
// x onto a multiple of the first unit vector. The order of every addition is part of the
// definition, so that v has the same bits everywhere: element i is added to partial sum i mod
// kPartialSums, in double precision, and the partial sums are added pairwise.
#pragma once

#include <cstdint>

#include "../base/target.h"
#include "../simd/scalar.h"

namespace torchinit::TORCHINIT_TARGET {

constexpr int kPartialSums = 64;  // a power of two

// Where the vector of one row of a ReflectorBlock (job/reflector_block.h) lies, and where it comes
// from. A row has `length - first` elements: zeros, then the vector.
struct ReflectorPlace {
  int64_t matrix;  // of the block
  int64_t zeros;   // elements of the row before the vector
  int64_t begin;   // the vector's first element, from the block's first
  int64_t size;    // the vector's elements
  uint64_t index;  // logical index of its first element in the key's normal fill
};

TORCHINIT_INLINE ReflectorPlace reflector_place(int64_t row, int64_t first, int64_t count,
                                                int64_t length) {
  const int64_t matrix = row / count;
  const int64_t zeros = row - matrix * count;
  const uint64_t number = static_cast<uint64_t>(first + zeros);
  return {matrix, zeros, row * (length - first) + zeros, length - first - zeros,
          number * static_cast<uint64_t>(length) + number};
}

// Partial sum number `lane` of the squares, as one CUDA thread makes it.
template <class T>
TORCHINIT_INLINE double partial_square_sum(const T* x, int64_t n, int lane) {
  double sum = 0;
  for (int64_t i = lane; i < n; i += kPartialSums)
    sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return sum;
}

// The partial sums, all in one pass over the vector.
template <class T>
TORCHINIT_INLINE void partial_square_sums(const T* x, int64_t n, double sums[kPartialSums]) {
  for (int lane = 0; lane < kPartialSums; ++lane) sums[lane] = 0;
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

// v is x times scale, but for its first element, which is 1.
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
  // A vector of zeros, which a single element can be, is taken for the first unit vector.
  if (norm == 0) return {T(0), T(0.5), T(-1)};
  const double head = negative ? x - norm : x + norm;  // away from zero: nothing cancels
  return {static_cast<T>(1 / head), static_cast<T>(norm / (negative ? -head : head)),
          negative ? T(1) : T(-1)};
}

}  // namespace torchinit::TORCHINIT_TARGET
