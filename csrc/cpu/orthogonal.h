// Orthogonal matrices in host memory.
#pragma once

#include "../job/orthogonal_job.h"

namespace torchinit::cpu {

// Forms the matrices of a job on at most `threads` threads. If memory is short, throws
// std::bad_alloc before anything is written.
void fill_orthogonal(OrthogonalJob job, int threads);

}  // namespace torchinit::cpu
