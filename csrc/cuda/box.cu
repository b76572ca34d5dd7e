// Launches of the bodies in box_body.h.
#include <cuda_runtime.h>

#include "box_body.h"
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

// What visit_plan calls.
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
  using L = TORCHINIT_TARGET::ScalarLanes;
  const LaunchBox launch{job, DeviceBox(job.box), static_cast<cudaStream_t>(stream)};
  const int element = element_size(job.plan.dtype);
  if (job.plan.transform != Transform::Constant)
    TORCHINIT_TARGET::visit_plan<L, L>(job.plan, launch);
  else if (element == 1)
    launch.run_constant<uint8_t>();
  else if (element == 2)
    launch.run_constant<uint16_t>();
  else if (element == 4)
    launch.run_constant<uint32_t>();
  else
    launch.run_constant<uint64_t>();
  check(cudaGetLastError());
}

}  // namespace torchinit::cuda
