// Blocks of Householder vectors in device memory.
#pragma once

#include "../job/reflector_block.h"

namespace torchinit::cuda {

// Queues what cpu::fill_reflectors does on a stream of the current device; the keys are read at
// once. Throws std::runtime_error if a launch fails.
void fill_reflectors(const ReflectorBlock& block, void* stream);

}  // namespace torchinit::cuda
