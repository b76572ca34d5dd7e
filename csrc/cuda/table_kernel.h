// The kernel of contiguous fills, for nvcc alone.
#pragma once

#include "contiguous_thread.h"

namespace torchinit::cuda {

// Three thread blocks in float32 and one in double precision fit a multiprocessor: with fewer
// registers values would be spilled to memory.
template <class Store, class Sampler>
__global__ void __launch_bounds__(kThreads, IsDouble<Store, Sampler>::value ? 1 : 3)
    table_kernel(const __grid_constant__ Table table) {
  for (int chunk = static_cast<int>(blockIdx.x); chunk < table.chunks;
       chunk += static_cast<int>(gridDim.x))
    fill_chunk<Store, Sampler>(table, chunk, static_cast<int>(threadIdx.x));
}

}  // namespace torchinit::cuda
