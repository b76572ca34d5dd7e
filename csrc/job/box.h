// The elements to fill: a box of a logical tensor, with its strides in memory.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace torchinit {

// One dimension of a box; strides in elements.
struct Dimension {
  int64_t size;
  int64_t memory_stride;
  int64_t logical_stride;  // in the row-major order of the logical tensor
};

// Dimensions of size one are dropped, and neighbours merged where both orders allow it, so a
// contiguous full tensor has one dimension. A box has at least one.
struct Box {
  std::vector<Dimension> dimensions;
  uint64_t first;  // logical index of the first element
  int64_t count;   // elements
};

inline Box flat_box(int64_t count) { return {{{count, 1, 1}}, 0, count}; }

// The elements offset[d] <= index[d] < offset[d] + sizes[d] of a logical tensor of the global
// shape. strides: of the box in memory, in elements.
inline Box make_box(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
                    const std::vector<int64_t>& global_shape, const std::vector<int64_t>& offset) {
  const size_t rank = sizes.size();
  if (strides.size() != rank || global_shape.size() != rank || offset.size() != rank)
    throw std::invalid_argument(
        "sizes, strides, global_shape and offset must have the same length");
  Box box{{}, 0, 1};
  std::vector<Dimension> reversed;
  int64_t logical_stride = 1;
  for (size_t d = rank; d-- > 0;) {
    if (sizes[d] < 0 || offset[d] < 0 || offset[d] > global_shape[d] - sizes[d])
      throw std::invalid_argument("the box exceeds the logical shape in dimension " +
                                  std::to_string(d));
    box.first += static_cast<uint64_t>(offset[d]) * static_cast<uint64_t>(logical_stride);
    box.count *= sizes[d];  // at most the number of logical elements
    if (sizes[d] != 1) {
      Dimension* inner = reversed.empty() ? nullptr : &reversed.back();
      if (inner && logical_stride == inner->size * inner->logical_stride &&
          strides[d] == inner->size * inner->memory_stride)
        inner->size *= sizes[d];
      else
        reversed.push_back({sizes[d], strides[d], logical_stride});
    }
    if (global_shape[d] && __builtin_mul_overflow(logical_stride, global_shape[d], &logical_stride))
      throw std::invalid_argument("the logical tensor has more than 2^63 - 1 elements");
  }
  if (reversed.empty()) reversed.push_back({1, 1, 1});
  box.dimensions.assign(reversed.rbegin(), reversed.rend());
  return box;
}

}  // namespace torchinit
