// The parts of an orthogonal matrix and their positions in tensors (docs/streams.md, section 5),
// the same for every processor and device.
#pragma once

#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "box.h"
#include "dtype.h"

namespace torchinit {

// Reflectors of a block; also columns that are formed together.
constexpr int kBlock = 32;
// Rows whose products are summed in one chain.
constexpr int kSegment = 256;
// Matrices of fewer elements may take any memory; larger ones only a fraction of their size.
constexpr int64_t kLargeMatrix = 1 << 20;

// The blocks of the tall (m, n) matrix, m >= n; a wide or square matrix is the transpose of one.
struct Reflectors {
  int64_t m, n;

  TORCHINIT_INLINE int64_t blocks() const { return (n + kBlock - 1) / kBlock; }
  TORCHINIT_INLINE int64_t first(int64_t block) const { return block * kBlock; }
  TORCHINIT_INLINE int count(int64_t block) const {
    const int64_t left = n - first(block);
    return left < kBlock ? static_cast<int>(left) : kBlock;
  }
  // Of the block's first vector.
  TORCHINIT_INLINE int64_t length(int64_t block) const { return m - first(block); }
  TORCHINIT_INLINE int64_t segments(int64_t block) const {
    return (length(block) + kSegment - 1) / kSegment;
  }
};

// The rows, or the columns, of a matrix in which a tensor has elements, and their positions.
class Axis {
 public:
  explicit Axis(const Box& box) : box_(box) {
    end_ = begin();
    for (const Dimension& d : box.dimensions) end_ += (d.size - 1) * d.logical_stride;
    end_ = box.count ? end_ + 1 : begin();
    const Dimension& only = box.dimensions.back();
    is_run_ = box.dimensions.size() == 1 && (only.logical_stride == 1 || only.size == 1);
  }

  int64_t count() const { return box_.count; }
  int64_t begin() const { return static_cast<int64_t>(box_.first); }
  int64_t end() const { return end_; }
  const Box& box() const { return box_; }

  // Whether consecutive numbers have one distance in memory; the distance.
  bool is_run() const { return is_run_; }
  int64_t step() const { return box_.dimensions.back().memory_stride; }

  // Lists those of the numbers first to end - 1 that are present: relative to `first`, with their
  // positions in memory. Returns how many.
  int locate(int64_t first, int64_t end, int* which, int64_t* place) const {
    int found = 0;
    if (is_run_) {
      const int64_t step = box_.dimensions.back().memory_stride;
      const int64_t from = first > begin() ? first : begin(), stop = end < end_ ? end : end_;
      for (int64_t i = from; i < stop; ++i, ++found) {
        which[found] = static_cast<int>(i - first);
        place[found] = (i - begin()) * step;
      }
      return found;
    }
    for (int64_t i = first; i < end; ++i) {
      if (i < begin() || i >= end_) continue;
      int64_t rest = i - begin(), at = 0;
      bool inside = true;
      for (const Dimension& d : box_.dimensions) {
        const int64_t number = rest / d.logical_stride;
        inside = inside && number < d.size;
        at += number * d.memory_stride;
        rest -= number * d.logical_stride;
      }
      if (!inside || rest) continue;
      which[found] = static_cast<int>(i - first);
      place[found++] = at;
    }
    return found;
  }

 private:
  Box box_;
  int64_t end_;
  bool is_run_;
};

// Matrices of one shape, each with its own key, times a gain.
struct OrthogonalJob {
  Dtype dtype;
  Reflectors reflectors;
  Axis rows, columns;  // of the tall matrix, in the memory of one tensor
  double gain;
  std::vector<uint64_t> keys;
  std::vector<void*> data;  // the first element of each tensor

  // The panels that have columns of the tensor.
  int64_t first_panel() const { return columns.begin() / kBlock; }
  int64_t end_panel() const { return (columns.end() + kBlock - 1) / kBlock; }
  // Whether the tensor can hold complete columns, as they are formed, between waves.
  template <class T>
  bool holds_columns() const {
    return element_size(dtype) == sizeof(T) && rows.count() == reflectors.m;
  }
};

// Where a gain is applied: to the heads, or, if it would overflow or lose digits within the
// products, to the formed matrix.
template <class T>
struct Gain {
  T heads, formed;

  explicit Gain(double gain) {
    constexpr double limit = sizeof(T) == sizeof(double) ? 0x1p512 : 0x1p64;
    const double size = std::fabs(gain);
    const bool moderate = size == 0 || (1 / limit <= size && size <= limit);
    heads = moderate ? static_cast<T>(gain) : T(1);
    formed = moderate ? T(1) : static_cast<T>(gain);
  }
};

// Tensors of these sizes and strides, each the box at `offset` of a matrix over the flattening
// (global_shape[0], rest).
inline OrthogonalJob make_orthogonal_job(Dtype dtype, const std::vector<int64_t>& sizes,
                                         const std::vector<int64_t>& strides,
                                         const std::vector<int64_t>& global_shape,
                                         const std::vector<int64_t>& offset, double gain) {
  if (sizes.size() < 2) throw std::invalid_argument("a matrix has two or more dimensions");
  if (is_integer(dtype)) throw std::invalid_argument("orthogonal matrices are not of integers");
  make_box(sizes, strides, global_shape, offset);  // throws for what cannot be
  const auto some = [](const std::vector<int64_t>& all, size_t begin, size_t end) {
    return std::vector<int64_t>(all.begin() + static_cast<ptrdiff_t>(begin),
                                all.begin() + static_cast<ptrdiff_t>(end));
  };
  const auto axis = [&](size_t begin, size_t end) {
    return Axis(make_box(some(sizes, begin, end), some(strides, begin, end),
                         some(global_shape, begin, end), some(offset, begin, end)));
  };
  int64_t columns = 1;
  for (size_t d = 1; d < sizes.size(); ++d) columns *= global_shape[d];
  const int64_t rows = global_shape[0];
  const Axis first = axis(0, 1), rest = axis(1, sizes.size());
  if (rows <= columns) return {dtype, {columns, rows}, rest, first, gain, {}, {}};
  return {dtype, {rows, columns}, first, rest, gain, {}, {}};
}

}  // namespace torchinit
