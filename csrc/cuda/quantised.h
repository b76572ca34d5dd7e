// Fills of low-precision weights in device memory.
#pragma once

#include "../job/quantised_job.h"

namespace torchinit::cuda {

// Queues a job, which has been checked, on a stream of the current device: its values, payload and
// scales are in device memory. Throws std::runtime_error if a launch fails.
void fill_quantised(const QuantisedJob& job, void* stream);

// Queues the search for the largest magnitude of `count` float32 or bfloat16 values, logical
// indices from 0 on: the float32 at `largest`, which is not negative, is raised to it.
void largest_magnitude(const Plan& plan, uint64_t key, int64_t count, void* largest, void* stream);

}  // namespace torchinit::cuda
