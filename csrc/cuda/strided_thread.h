// What one thread does for a box that is no single run of memory: the host runs it too, in
// tests/native/cuda_on_host.cpp.
//
// A box is cut into tiles of two of its dimensions: columns, whose elements follow each other in
// the logical order, and rows, the nearest in memory. A thread block makes a tile's values in the
// logical order, four a Philox block, and stores them in the order of memory: between lies shared
// memory. So a transposed matrix is written as fast as one that is not.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "../job/box.h"
#include "../job/visit_plan.h"
#include "../simd/scalar.h"

namespace torchinit::cuda {

constexpr int kMaxRank = 16;  // of a coalesced box
constexpr int kStridedThreads = 256;
constexpr int kTileBytes = 16384, kMostTileRows = 256;

inline void check_rank(const Box& box) {
  if (box.dimensions.size() > kMaxRank)
    throw std::invalid_argument("the tensor has more than 16 dimensions that cannot be merged");
}

// The exponents of the nearest powers of two that are not below n, and not above it.
inline int log_above(int64_t n) {
  int log = 0;
  while (int64_t{1} << log < n) ++log;
  return log;
}
inline int log_below(int64_t n) { return log_above(n + 1) - 1; }

// A Box as plain data.
struct TiledBox {
  Dimension row{1, 1, 1}, column{1, 1, 1};
  Dimension outer[kMaxRank];
  int outer_rank = 0;
  uint64_t first;
  int tile_rows, tile_columns;
  bool down;     // whether neighbours in memory are in neighbouring rows
  bool joined;   // whether a tile's rows follow each other in the logical order
  int log_fast;  // of a power of two: elements of a tile in the direction of memory, or a few more
  int64_t row_tiles, column_tiles, tiles;

  TiledBox(const Box& box, int element) : first(box.first) {
    check_rank(box);
    std::vector<Dimension> rest = box.dimensions;
    if (rest.back().logical_stride == 1) {
      column = rest.back();
      rest.pop_back();
    }
    if (!rest.empty()) {
      auto chosen = std::min_element(rest.begin(), rest.end(), [](const auto& a, const auto& b) {
        return a.memory_stride < b.memory_stride;
      });
      if (column.size > 1 && column.memory_stride < chosen->memory_stride)
        chosen = rest.end() - 1;  // the rows that may be joined
      row = *chosen;
      rest.erase(chosen);
    }
    outer_rank = static_cast<int>(rest.size());
    std::copy(rest.begin(), rest.end(), outer);

    constexpr int64_t kShortColumns = 64, kRowsAcross = 64;
    const int64_t most = kTileBytes / element;
    down = row.size > 1 && (column.size == 1 || row.memory_stride < column.memory_stride);
    joined = row.logical_stride == column.size && column.size <= kShortColumns;
    int64_t rows, columns = column.size;
    if (joined) {
      rows = int64_t{1} << log_below(most / columns);
    } else if (down) {
      rows = kRowsAcross << (column.size == 1 ? 2 : 0);
      columns = std::min(columns, most >> log_above(std::min(rows, row.size)));
    } else {
      columns = std::min(columns, most);
      rows = most / columns;
    }
    tile_rows = static_cast<int>(std::min({rows, row.size, int64_t{kMostTileRows}}));
    tile_columns = static_cast<int>(columns);
    log_fast = log_above(down ? tile_rows : tile_columns);
    row_tiles = (row.size + tile_rows - 1) / tile_rows;
    column_tiles = (column.size + tile_columns - 1) / tile_columns;
    tiles = row_tiles * column_tiles;
    for (int d = 0; d < outer_rank; ++d) tiles *= outer[d].size;
  }
};

// Adds the strides of some dimensions at a row-major position in them.
TORCHINIT_INLINE void locate(const Dimension* dimensions, int rank, int64_t position,
                             int64_t& place, uint64_t& index) {
  for (int d = rank - 1; d >= 0; --d) {
    const int64_t at = position % dimensions[d].size;
    place += at * dimensions[d].memory_stride;
    index += static_cast<uint64_t>(at * dimensions[d].logical_stride);
    position /= dimensions[d].size;
  }
}

// A tile's values in shared memory: an odd number of elements to a row, so that neither direction
// has all threads wait for one bank.
template <class Store>
struct BoxTile {
  using Element = typename Store::Element;
  static constexpr int kElements = kTileBytes / sizeof(Element) + kMostTileRows;

  const TiledBox& box;
  int rows, columns;
  int64_t place = 0;  // of its first element, in memory
  uint64_t index;     // of its first element, logical

  TORCHINIT_INLINE BoxTile(const TiledBox& whole, int64_t number) : box(whole), index(whole.first) {
    const int64_t row = number % box.row_tiles * box.tile_rows;
    number /= box.row_tiles;
    const int64_t column = number % box.column_tiles * box.tile_columns;
    locate(box.outer, box.outer_rank, number / box.column_tiles, place, index);
    place += row * box.row.memory_stride + column * box.column.memory_stride;
    index += static_cast<uint64_t>(row * box.row.logical_stride + column);
    rows =
        row + box.tile_rows < box.row.size ? box.tile_rows : static_cast<int>(box.row.size - row);
    columns = column + box.tile_columns < box.column.size
                  ? box.tile_columns
                  : static_cast<int>(box.column.size - column);
  }

  TORCHINIT_INLINE int at(int row, int column) const {
    return row * (box.tile_columns | 1) + column;
  }

  // Makes the thread's share of the values: Philox blocks of the rows, or of all rows as one.
  template <class Sampler>
  TORCHINIT_INLINE void make(const Sampler& sampler, const TORCHINIT_TARGET::RoundKeys& keys,
                             int thread, Element* shared) const {
    using L = TORCHINIT_TARGET::ScalarLanes;
    constexpr int in_block = TORCHINIT_TARGET::block_size<Store>;
    const int runs = box.joined ? 1 : rows, length = box.joined ? rows * columns : columns;
    const int blocks = (length + 2 * (in_block - 1)) / in_block;  // that a run may touch
    for (int item = thread; item < runs * blocks; item += kStridedThreads) {
      const int run = item / blocks;
      const uint64_t begin = index + static_cast<uint64_t>(run * box.row.logical_stride);
      const uint64_t block = begin / in_block + static_cast<uint64_t>(item - run * blocks);
      const int from = static_cast<int>(static_cast<int64_t>(block * in_block - begin));
      if (from >= length) continue;

      Element values[in_block];
      const TORCHINIT_TARGET::BlockRun<L> one(block, keys);
      TORCHINIT_TARGET::fill_groups<L, Sampler, Store, false, 1>(sampler, one, values);
      int row = run, column = from;
      if (box.joined && from > 0) {
        row = from / columns;
        column = from - row * columns;
      }
      TORCHINIT_UNROLL
      for (int k = 0; k < in_block; ++k) {
        if (from + k >= 0 && from + k < length) shared[at(row, column)] = values[k];
        if (++column == columns && box.joined) {
          column = 0;
          ++row;
        }
      }
    }
  }

  // Stores the thread's share, neighbours in memory by neighbouring threads.
  TORCHINIT_INLINE void store(int thread, const Element* shared, Element* to) const {
    const int fast = box.down ? rows : columns, slow = box.down ? columns : rows;
    for (int item = thread; item < slow << box.log_fast; item += kStridedThreads) {
      const int near = item & ((1 << box.log_fast) - 1), far = item >> box.log_fast;
      if (near >= fast) continue;
      const int row = box.down ? near : far, column = box.down ? far : near;
      to[place + row * box.row.memory_stride + column * box.column.memory_stride] =
          shared[at(row, column)];
    }
  }
};

// A Box as plain data for a constant, which has no logical order: the dimensions in that of memory.
struct SortedBox {
  Dimension dimensions[kMaxRank];
  int rank;
  int64_t count;

  explicit SortedBox(const Box& box)
      : rank(static_cast<int>(box.dimensions.size())), count(box.count) {
    check_rank(box);
    std::copy(box.dimensions.begin(), box.dimensions.end(), dimensions);
    std::sort(dimensions, dimensions + rank, [](const Dimension& a, const Dimension& b) {
      return a.memory_stride > b.memory_stride;
    });
  }
};

// Fills the thread's share with a constant: elements in turns, neighbours in neighbouring threads.
template <class Element>
TORCHINIT_INLINE void fill_constant_strided_thread(uint64_t pattern, const SortedBox& box,
                                                   void* data, int64_t thread, int64_t threads) {
  Element* const to = static_cast<Element*>(data);
  for (int64_t i = thread; i < box.count; i += threads) {
    int64_t place = 0;
    uint64_t unused = 0;
    locate(box.dimensions, box.rank, i, place, unused);
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
