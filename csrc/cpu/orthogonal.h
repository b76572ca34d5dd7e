// Orthogonal matrices in host memory.
#pragma once

#include "../job/orthogonal_job.h"

namespace torchinit::cpu {

// Forms the matrices of a job on at most `threads` threads. Throws std::bad_alloc before anything
// is written where memory is short.
void fill_orthogonal(OrthogonalJob job, int threads);

}  // namespace torchinit::cpu
