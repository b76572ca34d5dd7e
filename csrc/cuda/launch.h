// Helpers of every launch.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace torchinit::cuda {

inline void check(cudaError_t status) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(status));
}

// The size of a grid with `a_processor` thread blocks on each multiprocessor of the current device.
inline unsigned int full_grid(int a_processor) {
  int device = 0, processors = 0;
  check(cudaGetDevice(&device));
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  return static_cast<unsigned int>(processors * a_processor);
}

// Thread blocks for a number of independent items, at most a full grid: every thread takes several
// items in turn.
inline unsigned int blocks_for(int64_t items, int threads, int a_processor) {
  const int64_t wanted = (items + threads - 1) / threads;
  return static_cast<unsigned int>(std::min(wanted, int64_t{full_grid(a_processor)}));
}

}  // namespace torchinit::cuda
