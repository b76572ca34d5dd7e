// Which devices this compilation has code for.
#include <cuda_runtime.h>

#include "device.h"
#include "launch.h"

namespace torchinit::cuda {
namespace {

// Compiled for the same architectures as the other kernels.
__global__ void probe() {}

}  // namespace

#define TORCHINIT_TEXT(...) #__VA_ARGS__
#define TORCHINIT_TEXT_OF(list) TORCHINIT_TEXT(list)

const char* architectures() { return TORCHINIT_TEXT_OF((__CUDA_ARCH_LIST__)); }

const char* why_no_kernels() {
  cudaFuncAttributes attributes{};
  const cudaError_t status = cudaFuncGetAttributes(&attributes, probe);
  switch (status) {
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorInvalidKernelImage:
    case cudaErrorInvalidPtx:
    case cudaErrorJitCompilationDisabled:
    case cudaErrorJitCompilerNotFound:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorUnsupportedPtxVersion:
      (void)cudaGetLastError();  // reported here; clears it for the next call
      return cudaGetErrorString(status);
    default:
      check(status);
      return "";
  }
}

}  // namespace torchinit::cuda
