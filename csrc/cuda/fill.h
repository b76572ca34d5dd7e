// Fills of boxes in device memory.
#pragma once

#include <vector>

#include "../job/job.h"

namespace torchinit::cuda {

// Queues fills on a stream of the current device: contiguous tensors by tables, in one launch for
// each of many tensors, other boxes by a launch of their own. Throws std::runtime_error if a launch
// fails.
void fill(const std::vector<Job>& jobs, void* stream);

// Queues the fill of one box that is no single run of memory.
void fill_strided(const Job& job, void* stream);

}  // namespace torchinit::cuda
