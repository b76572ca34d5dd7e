// What the threads of one block do for one Householder vector, in three phases with a barrier after
// each of the first two; the host runs them too, in tests/native/cuda_on_host.cpp.
#pragma once

#include <cstdint>

#include "../simd/scalar.h"
#include "../math/reflector.h"
#include "../job/visit_plan.h"

namespace torchinit::cuda {

constexpr int kMatricesALaunch = 128;

// Part of a ReflectorBlock (cpu/reflectors.h), as plain data that is passed by value.
struct DeviceReflectors {
  uint64_t keys[kMatricesALaunch];
  int64_t rows, first, count, length;
  void* vectors;
  void* halves;
  void* signs;

  template <class T>
  TORCHINIT_INLINE T* vector(int64_t row) const {
    return static_cast<T*>(vectors) + row * (length - first) + row % count;
  }
  TORCHINIT_INLINE int64_t size(int64_t row) const { return length - first - row % count; }
};

// Phase 1: zeros before the vector, and its normals.
template <class T, class Store>
TORCHINIT_INLINE void draw_reflector(const DeviceReflectors& work, int64_t row, int thread,
                                     int threads) {
  using L = TORCHINIT_TARGET::ScalarLanes;
  constexpr int in_block = TORCHINIT_TARGET::block_size<Store>;
  const TORCHINIT_TARGET::NormalSampler<T> normal{{T(0), T(1)}};
  const TORCHINIT_TARGET::RoundKeys keys =
      TORCHINIT_TARGET::round_keys(work.keys[row / work.count]);
  T* const to = work.vector<T>(row);
  for (int64_t i = thread; i < row % work.count; i += threads) to[i - row % work.count] = T(0);

  const uint64_t number = static_cast<uint64_t>(work.first + row % work.count);
  const uint64_t begin = number * static_cast<uint64_t>(work.length) + number;
  const uint64_t end = begin + static_cast<uint64_t>(work.size(row));
  for (uint64_t block = begin / in_block + static_cast<uint64_t>(thread); block * in_block < end;
       block += static_cast<uint64_t>(threads)) {
    T values[in_block];
    const TORCHINIT_TARGET::BlockRun<L> run(block, keys);
    TORCHINIT_TARGET::fill_groups<L, TORCHINIT_TARGET::NormalSampler<T>, Store, false, 1>(
        normal, run, values);
    for (int k = 0; k < in_block; ++k) {
      const uint64_t index = block * in_block + static_cast<uint64_t>(k);
      if (index >= begin && index < end) to[index - begin] = values[k];
    }
  }
}

// Phase 2: the thread's part of the squared norm is partial_square_sum of math/reflector.h.

// Phase 3, after the parts were added: the vector is scaled.
template <class T>
TORCHINIT_INLINE void scale_reflector(const DeviceReflectors& work, int64_t row,
                                      const TORCHINIT_TARGET::Reflector<T>& reflector, int thread,
                                      int threads) {
  T* const x = work.vector<T>(row);
  for (int64_t i = thread; i < work.size(row); i += threads)
    x[i] = i == 0 ? T(1) : x[i] * reflector.scale;
  if (thread == 0) {
    static_cast<T*>(work.halves)[row] = reflector.half;
    static_cast<T*>(work.signs)[row] = reflector.sign;
  }
}

}  // namespace torchinit::cuda
