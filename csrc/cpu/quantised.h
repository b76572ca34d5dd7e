// Threaded fills of low-precision weights in host memory.
#pragma once

#include "../job/quantised_job.h"

namespace torchinit::cpu {

// Does a job, which has been checked, on at most `threads` threads.
void fill_quantised(const QuantisedJob& job, int threads);

// The largest magnitude of elements 0 to count - 1 of a logical tensor.
float largest_magnitude(const Plan& plan, uint64_t key, int64_t count, int threads);

}  // namespace torchinit::cpu
