// Launches of the bodies in box_body.h.
#include <cuda_runtime.h>

#include "strided_thread.h"
#include "fill.h"
#include "launch.h"

namespace torchinit::cuda {
namespace {

constexpr int kBoxThreads = 256;
constexpr int kBlocksPerProcessor = 8;

template <class Store, class Sampler>
__global__ void __launch_bounds__(kBoxThreads)
    box_kernel(Sampler sampler, TORCHINIT_TARGET::RoundKeys keys,
               const __grid_constant__ DeviceBox box, void* data) {
  fill_box<Store>(sampler, keys, box, data, int64_t{blockIdx.x} * kBoxThreads + threadIdx.x,
                  int64_t{gridDim.x} * kBoxThreads);
}

template <class Element>
__global__ void __launch_bounds__(kBoxThreads)
    constant_box_kernel(uint64_t pattern, const __grid_constant__ DeviceBox box, void* data) {
  fill_constant_box<Element>(pattern, box, data, int64_t{blockIdx.x} * kBoxThreads + threadIdx.x,
                             int64_t{gridDim.x} * kBoxThreads);
}

// What visit_box calls.
struct LaunchBox {
  const Job& job;
  const DeviceBox box;
  cudaStream_t stream;

  template <class L, class Store, class Sampler>
  void run(const Sampler& sampler) const {
    const int64_t blocks = blocks_of_row(box, TORCHINIT_TARGET::block_size<Store>);
    box_kernel<Store><<<grid(box.rows * blocks), kBoxThreads, 0, stream>>>(
        sampler, TORCHINIT_TARGET::round_keys(job.key), box, job.data);
  }

  template <class Element>
  void run_constant() const {
    constant_box_kernel<Element>
        <<<grid(job.box.count), kBoxThreads, 0, stream>>>(job.plan.pattern, box, job.data);
  }

  static unsigned int grid(int64_t items) {
    return blocks_for(items, kBoxThreads, kBlocksPerProcessor);
  }
};

}  // namespace

void fill_box(const Job& job, void* stream) {
  visit_box(job.plan, LaunchBox{job, DeviceBox(job.box), static_cast<cudaStream_t>(stream)});
  check(cudaGetLastError());
}

}  // namespace torchinit::cuda
