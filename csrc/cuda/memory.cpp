#include "memory.h"

#include <cuda_runtime_api.h>

#include "launch.h"

namespace torchinit::cuda {

bool is_host_backed(const void* data) {
  cudaPointerAttributes attributes{};
  check(cudaPointerGetAttributes(&attributes, data));
  return attributes.type == cudaMemoryTypeManaged || attributes.type == cudaMemoryTypeHost;
}

}  // namespace torchinit::cuda
