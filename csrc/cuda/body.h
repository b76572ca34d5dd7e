// What one CUDA thread does, as a function of its number and the number of threads: the host runs
// it too, in tests/native/cuda_on_host.cpp.
#pragma once

#include <cstdint>
#include <cstring>

#include "../box.h"
#include "../lanes/scalar.h"
#include "../math/transforms.h"

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

  TORCHINIT_INLINE bool contiguous_rows() const {
    return row_rank == 1 && dimensions[rank - 1].memory_stride == 1;
  }
};

// Adds the strides of dimensions begin to end at a row-major position in them.
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
template <class Store>
TORCHINIT_INLINE int64_t blocks_of_row(const DeviceBox& box) {
  constexpr int in_block = TORCHINIT_TARGET::block_size<Store>;
  return (box.row_size + 2 * (in_block - 1)) / in_block;
}

// The elements of one block, stored at once where they lie together on a 4-element boundary.
template <class Element, int n>
struct alignas(n * sizeof(Element)) Packet {
  Element values[n];
};

template <class Store, class Sampler>
TORCHINIT_INLINE void fill_body(const Sampler& sampler, const TORCHINIT_TARGET::RoundKeys& keys,
                                const DeviceBox& box, void* data, int64_t thread, int64_t threads) {
  using Element = typename Store::Element;
  using L = TORCHINIT_TARGET::ScalarLanes;
  constexpr int in_block = TORCHINIT_TARGET::block_size<Store>;
  Element* const to = static_cast<Element*>(data);
  const bool contiguous = box.contiguous_rows();
  const int64_t blocks = blocks_of_row<Store>(box);
  const int outer = box.rank - box.row_rank;

  for (int64_t item = thread; item < box.rows * blocks; item += threads) {
    const int64_t row = box.rows == 1 ? 0 : item / blocks;
    int64_t place = 0;
    uint64_t index = box.first;
    locate(box, 0, outer, row, place, index);
    const uint64_t block = index / in_block + static_cast<uint64_t>(item - row * blocks);
    const uint64_t row_end = index + static_cast<uint64_t>(box.row_size);
    const uint64_t begin = block * in_block;
    if (begin >= row_end) continue;

    Packet<Element, in_block> packet;
    const TORCHINIT_TARGET::BlockRun<L> run(block, keys);
    TORCHINIT_TARGET::fill_groups<L, Sampler, Store, false, 1>(sampler, run, packet.values);
    const bool whole = begin >= index && begin + in_block <= row_end;
    Element* const there = to + place + static_cast<int64_t>(begin - index);
    if (whole && contiguous && reinterpret_cast<uintptr_t>(there) % sizeof packet == 0) {
      *reinterpret_cast<Packet<Element, in_block>*>(there) = packet;
      continue;
    }
    for (int k = 0; k < in_block; ++k) {
      if (begin + k < index || begin + k >= row_end) continue;
      int64_t at = place;
      uint64_t unused = 0;
      locate(box, outer, box.rank, static_cast<int64_t>(begin + k - index), at, unused);
      to[at] = packet.values[k];
    }
  }
}

// A constant: element by element, neighbours in neighbouring threads.
template <class Element>
TORCHINIT_INLINE void fill_constant_body(uint64_t pattern, const DeviceBox& box, void* data,
                                         int64_t thread, int64_t threads) {
  Element* const to = static_cast<Element*>(data);
  const int64_t count = box.rows * box.row_size;
  const bool contiguous = box.rank == 1 && box.contiguous_rows();
  for (int64_t i = thread; i < count; i += threads) {
    int64_t place = contiguous ? i : 0;
    uint64_t unused = 0;
    if (!contiguous) locate(box, 0, box.rank, i, place, unused);
    to[place] = static_cast<Element>(pattern);
  }
}

}  // namespace torchinit::cuda
