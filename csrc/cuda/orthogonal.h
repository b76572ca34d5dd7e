// Orthogonal matrices in device memory.
#pragma once

#include <cstdint>

#include "../job/orthogonal_job.h"

namespace torchinit::cuda {

// Bytes of extra device memory that a job takes.
int64_t orthogonal_memory(const OrthogonalJob& job);

// Queues the work of cpu::fill_orthogonal on a stream of the current device; reads keys and
// addresses at once. Throws std::runtime_error if a launch fails.
void fill_orthogonal(const OrthogonalJob& job, void* memory, void* stream);

}  // namespace torchinit::cuda
