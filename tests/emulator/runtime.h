// The emulated device that the CUDA runtime of runtime.cpp launches on.
#pragma once

#include "machine.h"

namespace torchinit::emulator {

Machine& device();

}  // namespace torchinit::emulator
