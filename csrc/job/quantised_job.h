// A fill of low-precision weights with scales of blocks: a box of a logical tensor, payload and
// scales, or one of them.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "../math/block_format.h"
#include "plan.h"

namespace torchinit {

// Some rows and columns of consecutive matrices.
struct MatrixBox {
  int64_t first_matrix, matrices, first_row, rows, first_column, columns;
};

struct QuantisedJob {
  Plan plan;  // of float32 or bfloat16 values; not used if there are `values`
  uint64_t key;
  // Values in memory instead of draws: those of the box's blocks, matrices one after the other, the
  // rows and columns of a matrix extended to complete blocks or its edge; null for draws.
  const float* values;
  BlockFormat format;
  WholeScale whole;
  int64_t matrix_rows, matrix_columns;  // of the logical tensor's matrices
  MatrixBox box;                        // in values
  uint8_t* payload;                     // of the box, contiguous; null if only scales are wanted
  uint8_t* scales;  // of all blocks that the box touches, contiguous; null if not wanted
};

TORCHINIT_INLINE constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The rows, or columns, of a box extended to complete blocks of `size` or to the matrix's edge.
struct Extended {
  int64_t begin, end, first_block, blocks;

  Extended(int64_t first, int64_t count, int64_t size, int64_t matrix)
      : begin(first / size * size),
        end(divide_up(first + count, size) * size),
        first_block(first / size),
        blocks(divide_up(first + count, size) - first / size) {
    if (end > matrix) end = matrix;
  }
};

// Raises std::invalid_argument for what no kernel can do.
inline void check_job(const QuantisedJob& job) {
  const MatrixBox& box = job.box;
  const auto within = [](int64_t first, int64_t count, int64_t size) {
    return first >= 0 && count >= 0 && first <= size - count;
  };
  if (job.format.rows < 1 || job.format.columns < 1)
    throw std::invalid_argument("a block has at least one row and one column");
  if (!within(box.first_row, box.rows, job.matrix_rows) ||
      !within(box.first_column, box.columns, job.matrix_columns) || box.first_matrix < 0 ||
      box.matrices < 0)
    throw std::invalid_argument("the box exceeds the logical matrices");
  if (job.format.packed && job.payload &&
      (box.first_column % 2 || box.columns % 2 || job.format.columns % 2))
    throw std::invalid_argument("packed columns must be even");
  if (!job.values && job.plan.dtype != Dtype::Float32 && job.plan.dtype != Dtype::BFloat16)
    throw std::invalid_argument("values are drawn as float32 or bfloat16");
}

}  // namespace torchinit
