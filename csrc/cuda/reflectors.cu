// Launches of the phases in reflector_thread.h.
#include <cuda_runtime.h>

#include <algorithm>

#include "launch.h"
#include "reflector_thread.h"
#include "reflectors.h"

namespace torchinit::cuda {
namespace {

constexpr int kReflectorThreads = TORCHINIT_TARGET::kPartialSums;

template <class T, class Store>
__global__ void __launch_bounds__(kReflectorThreads)
    reflector_kernel(const __grid_constant__ DeviceReflectors work) {
  __shared__ double sums[kReflectorThreads];
  __shared__ TORCHINIT_TARGET::Reflector<T> reflector;
  const int thread = static_cast<int>(threadIdx.x);
  for (int64_t row = blockIdx.x; row < work.rows; row += gridDim.x) {
    const auto place = work.place(row);
    draw_reflector<T, Store>(work, place, thread, kReflectorThreads);
    __syncthreads();
    const T* const x = work.vector<T>(place);
    const T head = x[0];
    sums[thread] = TORCHINIT_TARGET::partial_square_sum(x, place.size, thread);
    __syncthreads();
    if (thread == 0)
      reflector = TORCHINIT_TARGET::make_reflector(head, TORCHINIT_TARGET::sum_pairwise(sums));
    __syncthreads();
    scale_reflector(work, row, place, reflector, thread, kReflectorThreads);
  }
}

}  // namespace

void fill_reflectors(const ReflectorBlock& block, void* stream) {
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  const int64_t element = element_size(block.dtype);
  const int64_t width = block.length - block.first;
  for (int64_t matrix = 0; matrix < block.matrices; matrix += kMatricesALaunch) {
    const int64_t matrices = std::min<int64_t>(kMatricesALaunch, block.matrices - matrix);
    DeviceReflectors work;
    for (int64_t i = 0; i < kMatricesALaunch; ++i)
      work.keys[i] = i < matrices ? static_cast<uint64_t>(block.keys[matrix + i]) : 0;
    const int64_t before = matrix * block.count;
    work.rows = matrices * block.count;
    work.first = block.first;
    work.count = block.count;
    work.length = block.length;
    work.vectors = static_cast<unsigned char*>(block.vectors) + before * width * element;
    work.half_norms = static_cast<unsigned char*>(block.half_norms) + before * element;
    work.signs = static_cast<unsigned char*>(block.signs) + before * element;
    const unsigned int blocks = blocks_for(work.rows * kReflectorThreads, kReflectorThreads, 16);
    if (blocks == 0) continue;
    if (block.dtype == Dtype::Float64)
      reflector_kernel<double, TORCHINIT_TARGET::StoreFloat64>
          <<<blocks, kReflectorThreads, 0, queue>>>(work);
    else
      reflector_kernel<float, TORCHINIT_TARGET::StoreFloat32>
          <<<blocks, kReflectorThreads, 0, queue>>>(work);
    check(cudaGetLastError());
  }
}

}  // namespace torchinit::cuda
