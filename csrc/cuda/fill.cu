// Launches of the bodies in body.h.
#include <cuda_runtime.h>

#include <algorithm>

#include "body.h"
#include "fill.h"
#include "launch.h"

namespace torchinit::cuda {
namespace {

constexpr int kThreads = 256;           // a thread block
constexpr int kBlocksPerProcessor = 8;  // enough to fill a multiprocessor

template <class Store, class Sampler>
__global__ void __launch_bounds__(kThreads)
    fill_kernel(Sampler sampler, TORCHINIT_TARGET::RoundKeys keys, DeviceBox box, void* data) {
  fill_body<Store>(sampler, keys, box, data, int64_t{blockIdx.x} * kThreads + threadIdx.x,
                   int64_t{gridDim.x} * kThreads);
}

template <class Element>
__global__ void __launch_bounds__(kThreads)
    fill_constant_kernel(uint64_t pattern, DeviceBox box, void* data) {
  fill_constant_body<Element>(pattern, box, data, int64_t{blockIdx.x} * kThreads + threadIdx.x,
                              int64_t{gridDim.x} * kThreads);
}

unsigned int grid(int64_t items) {
  return std::max(1u, blocks_for(items, kThreads, kBlocksPerProcessor));
}

// What visit_transform calls.
struct Launch {
  const TORCHINIT_TARGET::RoundKeys keys;
  const DeviceBox& box;
  void* data;
  cudaStream_t stream;

  template <class L, class Store, class Sampler>
  void run(const Sampler& sampler) const {
    const int64_t items = box.rows * blocks_of_row<Store>(box);
    fill_kernel<Store><<<grid(items), kThreads, 0, stream>>>(sampler, keys, box, data);
  }
};

}  // namespace

void fill(const Plan& plan, uint64_t key, const Box& box, void* data, void* stream) {
  if (box.count == 0) return;
  const DeviceBox device_box(box);
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  if (plan.transform == Transform::Constant) {
    const unsigned int blocks = grid(box.count);
    if (element_size(plan.dtype) == 2)
      fill_constant_kernel<uint16_t>
          <<<blocks, kThreads, 0, queue>>>(plan.pattern, device_box, data);
    else if (element_size(plan.dtype) == 4)
      fill_constant_kernel<uint32_t>
          <<<blocks, kThreads, 0, queue>>>(plan.pattern, device_box, data);
    else
      fill_constant_kernel<uint64_t>
          <<<blocks, kThreads, 0, queue>>>(plan.pattern, device_box, data);
  } else {
    using L = TORCHINIT_TARGET::ScalarLanes;
    TORCHINIT_TARGET::visit_transform<L, L>(
        plan, Launch{TORCHINIT_TARGET::round_keys(key), device_box, data, queue});
  }
  check(cudaGetLastError());
}

#define TORCHINIT_TEXT(...) #__VA_ARGS__
#define TORCHINIT_TEXT_OF(list) TORCHINIT_TEXT(list)

const char* architectures() { return TORCHINIT_TEXT_OF((__CUDA_ARCH_LIST__)); }

}  // namespace torchinit::cuda
