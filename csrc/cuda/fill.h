// Fills of boxes in device memory.
#pragma once

#include <vector>

#include "../job/job.h"

namespace torchinit::cuda {

// Queues fills on a stream of the current device: contiguous tensors in tables, many tensors in one
// launch, other boxes in one launch each. Throws std::runtime_error if a launch fails.
void fill(const std::vector<Job>& jobs, void* stream);

// Queues the fill of one box that is not contiguous.
void fill_strided(const Job& job, void* stream);

}  // namespace torchinit::cuda
