// Fills of boxes in device memory.
#pragma once

#include <cstdint>

#include "../box.h"
#include "../plan.h"

namespace torchinit::cuda {

// Queues the fill of a box, whose first element is at `data`, on a stream of the current device.
// Throws std::runtime_error if the launch fails.
void fill(const Plan& plan, uint64_t key, const Box& box, void* data, void* stream);

// The architectures compiled for, as nvcc lists them: "800,900".
const char* architectures();

}  // namespace torchinit::cuda
