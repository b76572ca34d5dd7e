// Helpers of every launch.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

namespace torchinit::cuda {

inline void check(cudaError_t status) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(status));
}

// After a launch. CUDA tells of errors late, so this one may be of earlier work, whoever gave it.
inline void check_launch() {
  const cudaError_t status = cudaGetLastError();
  if (status == cudaSuccess) return;
  throw std::runtime_error(
      std::string("CUDA, when torchinit launched a fill: ") + cudaGetErrorString(status) +
      ". The cause may be earlier work on this device; CUDA_LAUNCH_BLOCKING=1 shows which");
}

inline int current_device() {
  int device = 0;
  check(cudaGetDevice(&device));
  return device;
}

// Of the current device.
inline int multiprocessors() {
  int processors = 0;
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, current_device()));
  return processors;
}

// Allows, while it lives, calls that CUDA may refuse while a graph is captured: a kernel's first
// use loads it.
class WhileCapturing {
 public:
  WhileCapturing() { check(cudaThreadExchangeStreamCaptureMode(&mode_)); }
  ~WhileCapturing() { (void)cudaThreadExchangeStreamCaptureMode(&mode_); }
  WhileCapturing(const WhileCapturing&) = delete;
  WhileCapturing& operator=(const WhileCapturing&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// Thread blocks of a kernel that run at once on a multiprocessor of the current device.
template <class... Arguments>
int resident_blocks(void (*kernel)(Arguments...), int threads) {
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, int> known;
  const auto key = std::make_pair(reinterpret_cast<const void*>(kernel), current_device());
  const std::lock_guard<std::mutex> lock(mutex);
  int& blocks = known[key];
  if (blocks == 0) {
    const WhileCapturing relaxed;
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, 0));
    blocks = std::max(blocks, 1);
  }
  return blocks;
}

}  // namespace torchinit::cuda
