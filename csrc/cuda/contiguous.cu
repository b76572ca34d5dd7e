// Launches the per-thread code of contiguous_thread.h, and passes other boxes to their launches.
#include <cuda_runtime.h>

#include <algorithm>

#include "contiguous_thread.h"
#include "fill.h"
#include "launch.h"

namespace torchinit::cuda {
namespace {

constexpr int kBlocksPerProcessor = 8;  // enough to fill a multiprocessor
constexpr int kChunksPerBlock = 4;      // to even out their ends

// Three thread blocks in float32 and one in double precision fit a multiprocessor: with fewer
// registers values would be spilled to memory.
template <class Store, class Sampler>
__global__ void __launch_bounds__(kThreads, IsDouble<Store, Sampler>::value ? 1 : 3)
    table_kernel(const __grid_constant__ Table table) {
  for (int chunk = static_cast<int>(blockIdx.x); chunk < table.chunks;
       chunk += static_cast<int>(gridDim.x))
    fill_chunk<Store, Sampler>(table, chunk, static_cast<int>(threadIdx.x));
}

// Called by visit_table: launches the kernel of a store and sampler.
struct LaunchTable {
  const Table& table;
  unsigned int blocks;
  cudaStream_t stream;

  template <class L, class Store, class Sampler>
  void run(const Sampler&) const {
    table_kernel<Store, Sampler><<<blocks, kThreads, 0, stream>>>(table);
  }
};

}  // namespace

void fill(const std::vector<Job>& jobs, void* stream) {
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  const unsigned int blocks = full_grid(kBlocksPerProcessor);
  for (const Table& table : make_tables(jobs, int64_t{blocks} * kChunksPerBlock)) {
    const LaunchTable launch{table, std::min(blocks, static_cast<unsigned int>(table.chunks)),
                             queue};
    visit_table(table, launch);
    check(cudaGetLastError());
  }
  for (const Job& job : jobs)
    if (job.box.count && !is_flat(job.box)) fill_strided(job, stream);
}

}  // namespace torchinit::cuda
