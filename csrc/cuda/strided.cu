// Launches the per-thread code of strided_thread.h.
#include <cuda_runtime.h>

#include "fill.h"
#include "launch.h"
#include "strided_thread.h"

namespace torchinit::cuda {
namespace {

constexpr int kStridedThreads = 256;
constexpr int kBlocksPerProcessor = 8;

template <class Store, class Sampler>
__global__ void __launch_bounds__(kStridedThreads)
    strided_kernel(Sampler sampler, TORCHINIT_TARGET::RoundKeys keys,
                   const __grid_constant__ DeviceBox box, void* data) {
  fill_strided_thread<Store>(sampler, keys, box, data,
                             int64_t{blockIdx.x} * kStridedThreads + threadIdx.x,
                             int64_t{gridDim.x} * kStridedThreads);
}

template <class Element>
__global__ void __launch_bounds__(kStridedThreads)
    constant_strided_kernel(uint64_t pattern, const __grid_constant__ DeviceBox box, void* data) {
  fill_constant_strided_thread<Element>(pattern, box, data,
                                        int64_t{blockIdx.x} * kStridedThreads + threadIdx.x,
                                        int64_t{gridDim.x} * kStridedThreads);
}

// Called by visit_strided: launches the kernel of a store and sampler.
struct LaunchStrided {
  const Job& job;
  const DeviceBox box;
  cudaStream_t stream;

  template <class L, class Store, class Sampler>
  void run(const Sampler& sampler) const {
    const int64_t blocks = blocks_of_row(box, TORCHINIT_TARGET::block_size<Store>);
    strided_kernel<Store><<<grid(box.rows * blocks), kStridedThreads, 0, stream>>>(
        sampler, TORCHINIT_TARGET::round_keys(job.key), box, job.data);
  }

  template <class Element>
  void run_constant() const {
    constant_strided_kernel<Element>
        <<<grid(job.box.count), kStridedThreads, 0, stream>>>(job.plan.pattern, box, job.data);
  }

  static unsigned int grid(int64_t items) {
    return blocks_for(items, kStridedThreads, kBlocksPerProcessor);
  }
};

}  // namespace

void fill_strided(const Job& job, void* stream) {
  visit_strided(job.plan,
                LaunchStrided{job, DeviceBox(job.box), static_cast<cudaStream_t>(stream)});
  check(cudaGetLastError());
}

}  // namespace torchinit::cuda
