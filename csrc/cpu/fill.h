// Threaded fills of boxes in host memory.
#pragma once

#include <cstdint>
#include <vector>

#include "../job/job.h"

namespace torchinit::cpu {

// Fills the box, whose first element is at `data`, on at most `threads` threads.
void fill(const Plan& plan, uint64_t key, const Box& box, void* data, int threads);

// Does all jobs, which share the threads.
void fill(const std::vector<Job>& jobs, int threads);

}  // namespace torchinit::cpu
