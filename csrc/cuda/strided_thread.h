// The work of one thread for a box that is not contiguous, as a function of its number and the
// number of threads. The host runs it too, in tests/native/cuda_on_host.cpp.
#pragma once

#include <cstdint>

#include "../job/box.h"
#include "../job/visit_plan.h"
#include "../simd/scalar.h"

namespace torchinit::cuda {

constexpr int kMaxRank = 16;  // of a coalesced box

// A Box as plain data: rows of consecutive logical elements, the last `row_rank` dimensions.
struct DeviceBox {
  Dimension dimensions[kMaxRank];
  int rank, row_rank;
  uint64_t first;
  int64_t rows, row_size;

  explicit DeviceBox(const Box& box) : rank(static_cast<int>(box.dimensions.size())) {
    if (rank > kMaxRank)
      throw std::invalid_argument("the tensor has more than 16 dimensions that cannot be merged");
    for (int d = 0; d < rank; ++d) dimensions[d] = box.dimensions[static_cast<size_t>(d)];
    first = box.first;
    row_rank = 0;
    row_size = 1;
    while (row_rank < rank && dimensions[rank - 1 - row_rank].logical_stride == row_size)
      row_size *= dimensions[rank - 1 - row_rank++].size;
    rows = row_size ? box.count / row_size : 0;
  }
};

// Adds the strides of dimensions `begin` to `end - 1` at a row-major position in them.
TORCHINIT_INLINE void locate(const DeviceBox& box, int begin, int end, int64_t position,
                             int64_t& place, uint64_t& index) {
  for (int d = end - 1; d >= begin; --d) {
    const int64_t size = box.dimensions[d].size;
    const int64_t at = position % size;
    place += at * box.dimensions[d].memory_stride;
    index += static_cast<uint64_t>(at * box.dimensions[d].logical_stride);
    position /= size;
  }
}

// Philox blocks that a row may touch, whatever its first index.
TORCHINIT_INLINE int64_t blocks_of_row(const DeviceBox& box, int block_elements) {
  return (box.row_size + 2 * (block_elements - 1)) / block_elements;
}

// Fills the thread's share: every n-th Philox block of the rows.
template <class Store, class Sampler>
TORCHINIT_INLINE void fill_strided_thread(const Sampler& sampler,
                                          const TORCHINIT_TARGET::RoundKeys& keys,
                                          const DeviceBox& box, void* data, int64_t thread,
                                          int64_t threads) {
  using Element = typename Store::Element;
  using L = TORCHINIT_TARGET::ScalarLanes;
  constexpr int in_block = TORCHINIT_TARGET::block_size<Store>;
  Element* const to = static_cast<Element*>(data);
  const int64_t blocks = blocks_of_row(box, in_block);
  const int outer = box.rank - box.row_rank;

  for (int64_t item = thread; item < box.rows * blocks; item += threads) {
    const int64_t row = item / blocks;
    int64_t place = 0;
    uint64_t index = box.first;
    locate(box, 0, outer, row, place, index);
    const uint64_t block = index / in_block + static_cast<uint64_t>(item - row * blocks);
    const uint64_t row_end = index + static_cast<uint64_t>(box.row_size);
    const uint64_t begin = block * in_block;
    if (begin >= row_end) continue;

    Element values[in_block];
    const TORCHINIT_TARGET::BlockRun<L> run(block, keys);
    TORCHINIT_TARGET::fill_groups<L, Sampler, Store, false, 1>(sampler, run, values);
    TORCHINIT_UNROLL
    for (int k = 0; k < in_block; ++k) {
      if (begin + k < index || begin + k >= row_end) continue;
      int64_t at = place;
      uint64_t unused = 0;
      locate(box, outer, box.rank, static_cast<int64_t>(begin + k - index), at, unused);
      to[at] = values[k];
    }
  }
}

// Fills the thread's share with a constant; neighbouring threads fill neighbouring elements.
template <class Element>
TORCHINIT_INLINE void fill_constant_strided_thread(uint64_t pattern, const DeviceBox& box,
                                                   void* data, int64_t thread, int64_t threads) {
  Element* const to = static_cast<Element*>(data);
  for (int64_t i = thread; i < box.rows * box.row_size; i += threads) {
    int64_t place = 0;
    uint64_t unused = 0;
    locate(box, 0, box.rank, i, place, unused);
    to[place] = static_cast<Element>(pattern);
  }
}

// Calls visit.run<L, Store>(sampler), or visit.run_constant<Element>() for a constant.
template <class Visitor>
void visit_strided(const Plan& plan, const Visitor& visit) {
  using L = TORCHINIT_TARGET::ScalarLanes;
  const int element = element_size(plan.dtype);
  if (plan.transform != Transform::Constant)
    TORCHINIT_TARGET::visit_plan<L, L>(plan, visit);
  else if (element == 1)
    visit.template run_constant<uint8_t>();
  else if (element == 2)
    visit.template run_constant<uint16_t>();
  else if (element == 4)
    visit.template run_constant<uint32_t>();
  else
    visit.template run_constant<uint64_t>();
}

}  // namespace torchinit::cuda
