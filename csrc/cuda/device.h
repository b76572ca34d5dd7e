// What this compilation has for a device.
#pragma once

namespace torchinit::cuda {

// The architectures compiled for, as nvcc lists them: "(800,900)".
const char* architectures();

// Why no kernel can run on the current device: neither code nor PTX that its driver can compile.
// Empty if they can.
const char* why_no_kernels();

}  // namespace torchinit::cuda
