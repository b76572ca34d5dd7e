// What the threads of one block do for one Householder vector, in three phases with a barrier after
// each of the first two; the host runs them too, in tests/native/cuda_on_host.cpp.
#pragma once

#include <cstdint>

#include "../math/reflector.h"
#include "../math/samplers.h"
#include "../math/step.h"
#include "../simd/scalar.h"

namespace torchinit::cuda {

constexpr int kMatricesALaunch = 128;

// What the threads need of a ReflectorBlock (job/reflector_block.h), as plain data that is passed
// by value.
struct DeviceReflectors {
  uint64_t keys[kMatricesALaunch];
  int64_t rows, first, count, length;
  void* vectors;
  void* half_norms;
  void* signs;

  TORCHINIT_INLINE TORCHINIT_TARGET::ReflectorPlace place(int64_t row) const {
    return TORCHINIT_TARGET::reflector_place(row, first, count, length);
  }
  template <class T>
  TORCHINIT_INLINE T* vector(const TORCHINIT_TARGET::ReflectorPlace& place) const {
    return static_cast<T*>(vectors) + place.begin;
  }
};

// Phase 1: zeros before the vector, and its normals.
template <class T, class Store>
TORCHINIT_INLINE void draw_reflector(const DeviceReflectors& work,
                                     const TORCHINIT_TARGET::ReflectorPlace& place, int thread,
                                     int threads) {
  using L = TORCHINIT_TARGET::ScalarLanes;
  constexpr int in_block = TORCHINIT_TARGET::block_size<Store>;
  const TORCHINIT_TARGET::NormalSampler<T> normal{{T(0), T(1)}};
  const TORCHINIT_TARGET::RoundKeys keys = TORCHINIT_TARGET::round_keys(work.keys[place.matrix]);
  T* const to = work.vector<T>(place);
  for (int64_t i = thread; i < place.zeros; i += threads) to[i - place.zeros] = T(0);

  const uint64_t end = place.index + static_cast<uint64_t>(place.size);
  for (uint64_t block = place.index / in_block + static_cast<uint64_t>(thread);
       block * in_block < end; block += static_cast<uint64_t>(threads)) {
    T values[in_block];
    const TORCHINIT_TARGET::BlockRun<L> run(block, keys);
    TORCHINIT_TARGET::fill_groups<L, TORCHINIT_TARGET::NormalSampler<T>, Store, false, 1>(
        normal, run, values);
    for (int k = 0; k < in_block; ++k) {
      const uint64_t index = block * in_block + static_cast<uint64_t>(k);
      if (index >= place.index && index < end) to[index - place.index] = values[k];
    }
  }
}

// Phase 2, the thread's part of the squared norm, is partial_square_sum of math/reflector.h.

// Phase 3, after the parts were added: the vector is scaled.
template <class T>
TORCHINIT_INLINE void scale_reflector(const DeviceReflectors& work, int64_t row,
                                      const TORCHINIT_TARGET::ReflectorPlace& place,
                                      const TORCHINIT_TARGET::Reflector<T>& reflector, int thread,
                                      int threads) {
  T* const x = work.vector<T>(place);
  for (int64_t i = thread; i < place.size; i += threads)
    x[i] = i == 0 ? T(1) : x[i] * reflector.scale;
  if (thread == 0) {
    static_cast<T*>(work.half_norms)[row] = reflector.half_norm;
    static_cast<T*>(work.signs)[row] = reflector.sign;
  }
}

}  // namespace torchinit::cuda
