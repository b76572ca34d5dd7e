// The positions of a box's rows in memory and in the logical order.
#pragma once

#include <cstdint>

#include "../base/target.h"
#include "kernels.h"

namespace torchinit::TORCHINIT_TARGET {

// Walks through rows in their order.
class RowWalk {
 public:
  // Starts at the row of an element, numbered across all rows.
  TORCHINIT_INLINE RowWalk(const cpu::Rows& rows, int64_t element)
      : rows_(rows), size_(rows.size), row_(element / size_), column_(element % size_) {
    locate();
  }

  // The element's position in the row, its position in the box's memory if the row is contiguous
  // there, and its logical index.
  TORCHINIT_INLINE int64_t column() const { return column_; }
  TORCHINIT_INLINE int64_t left_in_row() const { return size_ - column_; }
  TORCHINIT_INLINE int64_t place() const { return place_ + column_; }
  TORCHINIT_INLINE uint64_t index() const { return index_ + static_cast<uint64_t>(column_); }

  // Advances by some elements of the row, at most all that are left.
  TORCHINIT_INLINE void advance(int64_t n) {
    column_ += n;
    if (column_ == size_) next();
  }

  // The number of the row; how many rows follow at the same distance, itself included; that
  // distance.
  TORCHINIT_INLINE int64_t row() const { return row_; }
  TORCHINIT_INLINE int64_t rows_left() const { return left_; }
  TORCHINIT_INLINE const Dimension& step() const { return step_; }

  // Moves to the first element of the next row.
  TORCHINIT_INLINE void next() { skip(1); }

  // Moves to the first element of a row, at most rows_left() further.
  TORCHINIT_INLINE void skip(int64_t rows) {
    column_ = 0;
    row_ += rows;
    left_ -= rows;
    if (left_ == 0) return locate();
    place_ += rows * step_.memory_stride;
    index_ += static_cast<uint64_t>(rows * step_.logical_stride);
  }

 private:
  TORCHINIT_INLINE void locate() {
    place_ = 0;
    index_ = rows_.first;
    int64_t rest = row_;
    for (int d = rows_.rank - 1; d >= 0; --d) {
      const Dimension& dim = rows_.outer[d];
      const int64_t at = rest % dim.size;
      place_ += at * dim.memory_stride;
      index_ += static_cast<uint64_t>(at * dim.logical_stride);
      rest /= dim.size;
      if (d == rows_.rank - 1) left_ = dim.size - at;
    }
    if (rows_.rank) step_ = rows_.outer[rows_.rank - 1];
  }

  const cpu::Rows& rows_;
  const int64_t size_;
  int64_t row_, column_;
  int64_t place_ = 0;   // of the row
  uint64_t index_ = 0;  // of the row
  int64_t left_ = 1;    // rows left in the innermost dimension, this one included
  Dimension step_{};
};

}  // namespace torchinit::TORCHINIT_TARGET
