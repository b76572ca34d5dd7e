// Orthogonal matrices of few columns, where the vectors of one block would take too much memory.
#pragma once

#include "../job/orthogonal_job.h"

namespace torchinit::cpu {

// Whether the vectors of a block take more than the allowed eighth of the matrix.
bool is_thin(const OrthogonalJob& job);

// Forms the matrices with little memory, by drawing the vectors three times, segment by segment.
template <class T>
void form_streamed(OrthogonalJob&& job, int64_t threads);

}  // namespace torchinit::cpu
