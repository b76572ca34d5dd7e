// Orthogonal matrices in device memory.
#pragma once

#include <cstdint>

#include "../job/orthogonal_job.h"

namespace torchinit::cuda {

// Bytes of device memory that a job takes besides.
int64_t orthogonal_memory(const OrthogonalJob& job);

// Queues what cpu::fill_orthogonal does on a stream of the current device; keys and addresses are
// read at once. Throws std::runtime_error if a launch fails.
void fill_orthogonal(const OrthogonalJob& job, void* memory, void* stream);

}  // namespace torchinit::cuda
