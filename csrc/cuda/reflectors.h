// Blocks of Householder vectors in device memory.
#pragma once

#include "../cpu/reflectors.h"

namespace torchinit::cuda {

// Queues what cpu::fill_reflectors does on a stream of the current device; the keys are read at
// once. Throws std::runtime_error if a launch fails.
void fill_reflectors(const cpu::ReflectorBlock& block, void* stream);

}  // namespace torchinit::cuda
