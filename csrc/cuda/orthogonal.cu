// Launches the per-thread code of orthogonal_thread.h.
#include <cuda_runtime.h>

#include "launch.h"
#include "orthogonal.h"
#include "orthogonal_launches.h"

namespace torchinit::cuda {
namespace {

template <class T, class Thread>
__global__ void __launch_bounds__(Thread::threads, Thread::blocks)
    orthogonal_kernel(const __grid_constant__ DeviceWave<T> wave, int block) {
  __shared__ typename Thread::Shared shared;
  const Place place = {static_cast<int64_t>(blockIdx.x), static_cast<int>(blockIdx.y),
                       static_cast<int>(blockIdx.z), static_cast<int>(threadIdx.x)};
  Thread thread(wave, place, block);
  thread.begin(shared);
  __syncthreads();
  for (int step = 0; step < thread.steps; ++step) {
    thread.step(shared, step);
    __syncthreads();
  }
  thread.end(shared);
}

struct LaunchKernel {
  cudaStream_t stream;

  template <class Thread, class T>
  void run(const DeviceWave<T>& wave, int64_t x, int64_t y, int64_t z, int block) const {
    const dim3 grid(static_cast<unsigned int>(x), static_cast<unsigned int>(y),
                    static_cast<unsigned int>(z));
    orthogonal_kernel<T, Thread><<<grid, Thread::threads, 0, stream>>>(wave, block);
    check_launch();
  }
};

}  // namespace

int64_t orthogonal_memory(const OrthogonalJob& job) {
  if (job.dtype == Dtype::Float64)
    return DeviceFormation<double>(job).memory_size() * int64_t{sizeof(double)};
  return DeviceFormation<float>(job).memory_size() * int64_t{sizeof(float)};
}

void fill_orthogonal(const OrthogonalJob& job, void* memory, void* stream) {
  if (job.keys.empty() || job.rows.count() == 0 || job.columns.count() == 0) return;
  const LaunchKernel launch{static_cast<cudaStream_t>(stream)};
  if (job.dtype == Dtype::Float64)
    DeviceFormation<double>(job).form<TORCHINIT_TARGET::StoreFloat64>(static_cast<double*>(memory),
                                                                      launch);
  else
    DeviceFormation<float>(job).form<TORCHINIT_TARGET::StoreFloat32>(static_cast<float*>(memory),
                                                                     launch);
}

}  // namespace torchinit::cuda
