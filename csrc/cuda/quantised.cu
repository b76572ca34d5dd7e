// Launches the per-thread code of quantised_thread.h.
#include <cuda_runtime.h>

#include <algorithm>

#include "launch.h"
#include "quantised.h"
#include "quantised_thread.h"

namespace torchinit::cuda {
namespace {

// As for tables; four pieces in registers leave room for two thread blocks.
template <int held, class Source>
__global__ void __launch_bounds__(kQuantiseThreads, Source::is_double ? 1
                                                    : held == 1       ? 3
                                                                      : 2)
    quantise_kernel(const __grid_constant__ Source source,
                    const __grid_constant__ QuantisedTiles tiles) {
  __shared__ typename QuantiseThread<held, Source>::Shared shared;
  QuantiseThread<held, Source> thread(source, tiles, static_cast<int>(threadIdx.x));
  thread.begin(shared);
  __syncthreads();
  for (int64_t tile = blockIdx.x; tile < tiles.count; tile += gridDim.x) {
    thread.measure(shared, tile);
    __syncthreads();
    thread.store(shared, tile);
  }
}

template <class Source>
__global__ void __launch_bounds__(kQuantiseThreads, Source::is_double ? 1 : 2)
    large_block_kernel(const __grid_constant__ Source source,
                       const __grid_constant__ QuantisedTiles tiles) {
  __shared__ typename LargeBlockThread<Source>::Shared shared;
  const LargeBlockThread<Source> thread(source, tiles, static_cast<int>(threadIdx.x));
  for (int64_t tile = blockIdx.x; tile < tiles.count; tile += gridDim.x) {
    thread.begin(shared);
    __syncthreads();
    thread.measure(shared, tile);
    __syncthreads();
    thread.store(shared, tile);
    __syncthreads();
  }
}

template <class Source>
__global__ void __launch_bounds__(kQuantiseThreads, Source::is_double ? 1 : 3)
    largest_kernel(const __grid_constant__ Source source, int64_t count, uint32_t* largest) {
  __shared__ typename LargestThread<Source>::Shared shared;
  const LargestThread<Source> thread{source, static_cast<int>(threadIdx.x)};
  thread.begin(shared);
  __syncthreads();
  thread.measure(shared, count, int64_t{blockIdx.x} * kQuantiseThreads + threadIdx.x,
                 int64_t{gridDim.x} * kQuantiseThreads);
  __syncthreads();
  thread.end(shared, largest);
}

// Thread blocks for a number of shares: as many as run at once, which take them in turn.
template <class Kernel>
unsigned int grid(Kernel kernel, int64_t shares) {
  const int64_t most = int64_t{multiprocessors()} * resident_blocks(kernel, kQuantiseThreads);
  return static_cast<unsigned int>(std::min(shares, most));
}

struct LaunchQuantise {
  const QuantisedJob& job;
  cudaStream_t stream;

  template <class Source>
  void run(const Source& source) const {
    const QuantisedTiles tiles(job, most_held<Source>);
    if (tiles.held == 0)
      launch(large_block_kernel<Source>, source, tiles);
    else if (tiles.held == 1)
      launch(quantise_kernel<1, Source>, source, tiles);
    else if constexpr (most_held<Source> > 1)
      launch(quantise_kernel<most_held<Source>, Source>, source, tiles);
  }

 private:
  template <class Kernel, class Source>
  void launch(Kernel kernel, const Source& source, const QuantisedTiles& tiles) const {
    kernel<<<grid(kernel, tiles.count), kQuantiseThreads, 0, stream>>>(source, tiles);
  }
};

struct LaunchLargest {
  int64_t count;
  uint32_t* largest;
  cudaStream_t stream;

  template <class Source>
  void run(const Source& source) const {
    const auto kernel = largest_kernel<Source>;
    const int64_t blocks = divide_up(count, int64_t{kPiece} * kQuantiseThreads);
    kernel<<<grid(kernel, blocks), kQuantiseThreads, 0, stream>>>(source, count, largest);
  }
};

}  // namespace

void fill_quantised(const QuantisedJob& job, void* stream) {
  if (job.box.matrices == 0 || job.box.rows == 0 || job.box.columns == 0) return;
  const LaunchQuantise launch{job, static_cast<cudaStream_t>(stream)};
  if (job.values)
    launch.run(InMemory{job.values});
  else
    visit_draws(job.plan, job.key, launch);
  check_launch();
}

void largest_magnitude(const Plan& plan, uint64_t key, int64_t count, void* largest, void* stream) {
  if (count == 0) return;
  visit_draws(
      plan, key,
      LaunchLargest{count, static_cast<uint32_t*>(largest), static_cast<cudaStream_t>(stream)});
  check_launch();
}

}  // namespace torchinit::cuda
