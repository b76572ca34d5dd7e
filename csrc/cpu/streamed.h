// Orthogonal matrices of so few columns that the vectors of one block would be a good part of them.
#pragma once

#include "../job/orthogonal_job.h"

namespace torchinit::cpu {

// Whether the vectors of a block take more than the eighth of the matrix that it may take.
bool is_thin(const OrthogonalJob& job);

// Forms the matrices with hardly any memory, drawing vectors three times: segment by segment.
template <class T>
void form_streamed(OrthogonalJob&& job, int64_t threads);

}  // namespace torchinit::cpu
