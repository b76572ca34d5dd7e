// Which devices this compilation has code for.
#pragma once

namespace torchinit::cuda {

// The architectures compiled for, as nvcc lists them: "(800,900)".
const char* architectures();

// Why kernels cannot run on the current device: there is neither code nor PTX that its driver can
// compile. Empty if they can.
const char* why_no_kernels();

}  // namespace torchinit::cuda
