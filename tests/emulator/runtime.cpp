// As much of the CUDA runtime as csrc/cuda calls, and what nvcc puts into host code: launches go to
// the emulated device, and whatever is wrong with one ends the program.
#include "runtime.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdlib>
#include <unordered_map>

namespace torchinit::emulator {

Machine& device() {
  static Machine machine;
  return machine;
}

namespace {

// Kernels by the address of their host function.
std::unordered_map<const void*, std::string>& names() {
  static std::unordered_map<const void*, std::string> all;
  return all;
}

const Kernel& kernel_of(const void* function) {
  const auto found = names().find(function);
  if (found == names().end()) throw Fault("a function that is no kernel");
  return device().kernel(found->second);
}

struct Configuration {
  dim3 grid, threads;
  size_t shared;
  cudaStream_t stream;
};
std::vector<Configuration> configurations;

// Registers are ptxas' to say. The kernel may use what its launch bounds leave it: that many blocks
// fit, unless threads or shared memory allow fewer.
int blocks_that_fit(const Kernel& kernel, int threads, size_t shared) {
  constexpr int most_threads = 2048, most_blocks = 32;
  constexpr size_t most_shared = 164 << 10;  // the least of sm_80, sm_90 and sm_100
  int blocks =
      kernel.least_blocks ? kernel.least_blocks : device().settings.blocks_a_multiprocessor;
  blocks = std::min({blocks, most_threads / threads, most_blocks});
  const size_t taken = shared + kernel.shared_bytes;
  return taken ? std::min(blocks, static_cast<int>(most_shared / (taken + 1024))) : blocks;
}

}  // namespace
}  // namespace torchinit::emulator

using namespace torchinit::emulator;

extern "C" {

void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}

void __cudaRegisterFunction(void**, const char* function, char*, const char* name, int, uint3*,
                            uint3*, dim3*, dim3*, int*) {
  names()[function] = name;
}

unsigned int __cudaPushCallConfiguration(dim3 grid, dim3 threads, size_t shared, void* stream) {
  configurations.push_back({grid, threads, shared, static_cast<cudaStream_t>(stream)});
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* threads, size_t* shared, void* stream) {
  const Configuration top = configurations.back();
  configurations.pop_back();
  *grid = top.grid;
  *threads = top.threads;
  *shared = top.shared;
  *static_cast<cudaStream_t*>(stream) = top.stream;
  return cudaSuccess;
}

cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 threads, void** parameters,
                             size_t shared, cudaStream_t) {
  device().launch(kernel_of(function), {grid.x, grid.y, grid.z}, {threads.x, threads.y, threads.z},
                  parameters, shared);
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = static_cast<cudaKernel_t>(const_cast<void*>(function));
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 threads, void** parameters,
                               size_t shared, cudaStream_t stream) {
  return cudaLaunchKernel(kernel, grid, threads, parameters, shared, stream);
}

cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "an error of the emulated device"; }

cudaError_t cudaGetDevice(int* number) {
  *number = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  if (attribute != cudaDevAttrMultiProcessorCount) throw Fault("an attribute that is not known");
  *value = device().settings.multiprocessors;
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* function) {
  const Kernel& kernel = kernel_of(function);
  *attributes = {};
  attributes->sharedSizeBytes = kernel.shared_bytes;
  attributes->maxThreadsPerBlock = kernel.most_threads;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* function,
                                                          int threads, size_t shared) {
  *blocks = blocks_that_fit(kernel_of(function), threads, shared);
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks,
                                                                   const void* function,
                                                                   int threads, size_t shared,
                                                                   unsigned int) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, threads, shared);
}
// No graph is captured here.
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void*) {
  *attributes = {};
  attributes->type = cudaMemoryTypeDevice;
  return cudaSuccess;
}

}  // extern "C"
