// The work of one thread of a block for a tile of a product. Every element is one chain of fused
// multiply-adds from zero, over at most a segment. The host runs it too.
//
// The work between barriers has three parts: begin, then some steps, then end. Shared memory
// belongs to the block.
#pragma once

#include <cstdint>

#include "../job/orthogonal_job.h"
#include "../simd/scalar.h"

namespace torchinit::cuda {

// An operand: strides along k and across it.
template <class T>
struct Operand {
  const T* data;
  int64_t across, along;  // strides
  int64_t size;           // number across k
};

// Rows and columns of a tile, of a thread, and the k's of a step.
template <int kM, int kN, int kR, int kC>
struct Tile {
  static constexpr int M = kM, N = kN, R = kR, C = kC, K = 8;
  static constexpr int side = N / C;  // threads side by side
  static constexpr int threads = M / R * side;
  static constexpr int pad = 4;

  // A thread's rows and columns, in groups of four.
  static TORCHINIT_INLINE int row(int thread, int i) {
    return i / 4 * (M / R * 4) + thread / side * 4 + i % 4;
  }
  static TORCHINIT_INLINE int column(int thread, int j) {
    return j / 4 * (side * 4) + thread % side * 4 + j % 4;
  }
};

// The way a tile's threads load `width` rows or columns of an operand for one step. along: whether
// consecutive k's are neighbours in memory.
template <class T, class Z, int width, bool along>
struct Loader {
  static constexpr int each = width * Z::K / Z::threads;
  static_assert(each >= 1);
  static constexpr int stride = along ? Z::threads / Z::K : Z::threads / width;
  static_assert(stride >= 1);

  const T* from;
  int64_t step, next;  // strides to the thread's next element, and to the next step
  int size;
  T loaded[each];

  static TORCHINIT_INLINE int across(int thread, int e) {
    return along ? thread / Z::K + e * stride : thread % width;
  }
  static TORCHINIT_INLINE int k(int thread, int e) {
    return along ? thread % Z::K : thread / width + e * stride;
  }

  TORCHINIT_INLINE Loader(const Operand<T>& operand, int64_t first, int thread) {
    const int64_t left = operand.size - first;
    size = static_cast<int>(left < width ? left : width);
    from =
        operand.data + (first + across(thread, 0)) * operand.across + k(thread, 0) * operand.along;
    step = stride * (along ? operand.across : operand.along);
    next = Z::K * operand.along;
  }
  // Zeros past the end add nothing to a chain from +0.
  TORCHINIT_INLINE void load(int thread, int left) {
    TORCHINIT_UNROLL
    for (int e = 0; e < each; ++e)
      loaded[e] = across(thread, e) < size && k(thread, e) < left ? from[e * step] : T(0);
    from += next;
  }
  TORCHINIT_INLINE void put(int thread, T (&to)[Z::K][width + Z::pad]) const {
    TORCHINIT_UNROLL
    for (int e = 0; e < each; ++e) to[k(thread, e)][across(thread, e)] = loaded[e];
  }
};

template <class T, class Z, bool a_along, bool b_along>
struct ProductThread {
  struct Shared {
    alignas(16) T a[2][Z::K][Z::M + Z::pad];
    alignas(16) T b[2][Z::K][Z::N + Z::pad];
  };

  const int thread;
  int left;  // k's that are not loaded yet
  int steps;
  Loader<T, Z, Z::M, a_along> a;
  Loader<T, Z, Z::N, b_along> b;
  T sums[Z::R][Z::C];

  TORCHINIT_INLINE ProductThread(const Operand<T>& a_, const Operand<T>& b_, int64_t row,
                                 int64_t column, int k, int thread_)
      : thread(thread_),
        left(k),
        steps((k + Z::K - 1) / Z::K),
        a(a_, row, thread_),
        b(b_, column, thread_) {
    TORCHINIT_UNROLL
    for (int i = 0; i < Z::R; ++i) TORCHINIT_UNROLL
    for (int j = 0; j < Z::C; ++j) sums[i][j] = T(0);
  }

  TORCHINIT_INLINE void begin(Shared& shared) { load(), put(shared, 0); }

  TORCHINIT_INLINE void step(Shared& shared, int number) {
    const int half = number % 2;
    const bool more = number + 1 < steps;
    if (more) load();
    TORCHINIT_UNROLL
    for (int q = 0; q < Z::K; ++q) {
      T x[Z::R], y[Z::C];
      TORCHINIT_UNROLL
      for (int i = 0; i < Z::R; ++i) x[i] = shared.a[half][q][Z::row(thread, i)];
      TORCHINIT_UNROLL
      for (int j = 0; j < Z::C; ++j) y[j] = shared.b[half][q][Z::column(thread, j)];
      TORCHINIT_UNROLL
      for (int i = 0; i < Z::R; ++i) TORCHINIT_UNROLL
      for (int j = 0; j < Z::C; ++j)
        sums[i][j] = TORCHINIT_TARGET::ScalarLanes::fma(x[i], y[j], sums[i][j]);
    }
    if (more) put(shared, 1 - half);
  }

 private:
  TORCHINIT_INLINE void load() {
    a.load(thread, left);
    b.load(thread, left);
    left -= Z::K;
  }
  TORCHINIT_INLINE void put(Shared& shared, int half) const {
    a.put(thread, shared.a[half]);
    b.put(thread, shared.b[half]);
  }
};

}  // namespace torchinit::cuda
