// Launches the per-thread code of strided_thread.h.
#include <cuda_runtime.h>

#include <algorithm>

#include "contiguous_thread.h"
#include "fill.h"
#include "launch.h"
#include "strided_thread.h"

namespace torchinit::cuda {
namespace {

template <class Store, class Sampler>
__global__ void __launch_bounds__(kStridedThreads, IsDouble<Store, Sampler>::value ? 1 : 3)
    tile_kernel(Sampler sampler, TORCHINIT_TARGET::RoundKeys keys,
                const __grid_constant__ TiledBox box, void* data) {
  using Element = typename Store::Element;
  __shared__ Element shared[BoxTile<Store>::kElements];
  const int thread = static_cast<int>(threadIdx.x);
  for (int64_t number = blockIdx.x; number < box.tiles; number += gridDim.x) {
    const BoxTile<Store> tile(box, number);
    tile.make(sampler, keys, thread, shared);
    __syncthreads();
    tile.store(thread, shared, static_cast<Element*>(data));
    __syncthreads();
  }
}

template <class Element>
__global__ void __launch_bounds__(kStridedThreads)
    constant_strided_kernel(uint64_t pattern, const __grid_constant__ SortedBox box, void* data) {
  fill_constant_strided_thread<Element>(pattern, box, data,
                                        int64_t{blockIdx.x} * kStridedThreads + threadIdx.x,
                                        int64_t{gridDim.x} * kStridedThreads);
}

// Called by visit_strided: launches the kernel of a store and sampler.
struct LaunchStrided {
  const Job& job;
  cudaStream_t stream;

  template <class L, class Store, class Sampler>
  void run(const Sampler& sampler) const {
    const TiledBox box(job.box, element_size(job.plan.dtype));
    const auto kernel = tile_kernel<Store, Sampler>;
    kernel<<<grid(kernel, box.tiles), kStridedThreads, 0, stream>>>(
        sampler, TORCHINIT_TARGET::round_keys(job.key), box, job.data);
  }

  template <class Element>
  void run_constant() const {
    const auto kernel = constant_strided_kernel<Element>;
    const int64_t blocks = (job.box.count + kStridedThreads - 1) / kStridedThreads;
    kernel<<<grid(kernel, blocks), kStridedThreads, 0, stream>>>(job.plan.pattern,
                                                                 SortedBox(job.box), job.data);
  }

  // Thread blocks for a number of shares: as many as run at once, which take them in turn.
  template <class Kernel>
  static unsigned int grid(Kernel kernel, int64_t shares) {
    const int64_t most = int64_t{multiprocessors()} * resident_blocks(kernel, kStridedThreads);
    return static_cast<unsigned int>(std::min(shares, most));
  }
};

}  // namespace

void fill_strided(const Job& job, void* stream) {
  visit_strided(job.plan, LaunchStrided{job, static_cast<cudaStream_t>(stream)});
  check_launch();
}

}  // namespace torchinit::cuda
