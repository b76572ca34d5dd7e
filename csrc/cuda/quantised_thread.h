// What one thread does for low-precision weights with scales of blocks: the host runs it too, in
// tests/native/cuda_on_host.cpp.
//
// A thread has pieces of a row: 16 values, drawn into registers, whose payload is one store. A
// thread block takes a tile of complete blocks of the format. Its threads draw, raise each block's
// largest magnitude in shared memory, and after a barrier compute the scale and store. Blocks of up
// to 1024 pieces (128 x 128) stay in registers so. Of larger ones every value is drawn twice, and
// of those of more than 256 pieces if their rows are not a power of two of them, or if values are
// computed in double precision, which leaves too few registers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "../job/quantised_job.h"
#include "../job/visit_plan.h"
#include "../math/block_scale.h"
#include "../simd/scalar.h"
#include "contiguous_thread.h"

namespace torchinit::cuda {

constexpr int kQuantiseThreads = 256;
constexpr int kPiece = 16;    // values, neighbours in a row
constexpr int kMostHeld = 4;  // pieces of a thread in registers

// For a source of values.
template <class Source>
constexpr int most_held = Source::is_double ? 1 : kMostHeld;

TORCHINIT_INLINE void raise(uint32_t* largest, uint32_t to) {
#if TORCHINIT_DEVICE_PASS
  atomicMax(largest, to);
#else
  if (*largest < to) *largest = to;
#endif
}

// Consecutive Philox blocks that may have any numbers.
struct NearBlocks {
  using L = TORCHINIT_TARGET::ScalarLanes;

  uint64_t block;
  const TORCHINIT_TARGET::RoundKeys& keys;

  template <int groups, class Word>
  TORCHINIT_INLINE void words(Word* first, Word* second) const {
    uint64_t c[groups][4];
    TORCHINIT_UNROLL
    for (int i = 0; i < groups; ++i) {
      const uint64_t number = block + static_cast<uint64_t>(i);
      TORCHINIT_TARGET::UpperHalf<L>(number, keys)
          .two_rounds(L::multiply_wide(number, TORCHINIT_TARGET::kFirst), keys, c[i]);
    }
    TORCHINIT_TARGET::other_rounds<L, groups>(c, keys, first, second);
  }
};

// Sources of values. Each writes a piece from a logical index on, or from a place in memory.

template <class Store, class Sampler>
struct Draws {
  static constexpr bool is_double = IsDouble<Store, Sampler>::value;

  Sampler sampler;
  TORCHINIT_TARGET::RoundKeys keys;

  TORCHINIT_INLINE void get(uint64_t index, int64_t, int, float (&values)[kPiece]) const {
    constexpr int whole = kPiece / 4;
    float drawn[kPiece + 4];
    draw<whole>(index / 4, drawn);
    const uint32_t shift = static_cast<uint32_t>(index % 4);
    if (shift) {
      draw<1>(index / 4 + whole, drawn + kPiece);
      TORCHINIT_UNROLL
      for (int k = 0; k < kPiece + 2; ++k) drawn[k] = shift & 1 ? drawn[k + 1] : drawn[k];
      TORCHINIT_UNROLL
      for (int k = 0; k < kPiece; ++k) drawn[k] = shift & 2 ? drawn[k + 2] : drawn[k];
    }
    TORCHINIT_UNROLL
    for (int k = 0; k < kPiece; ++k) values[k] = drawn[k];
  }

 private:
  template <int blocks>
  TORCHINIT_INLINE void draw(uint64_t block, float* values) const {
    using L = TORCHINIT_TARGET::ScalarLanes;
    constexpr int abreast = is_double && blocks > 2 ? 2 : blocks;
    typename Store::Element drawn[4 * blocks];
    TORCHINIT_UNROLL
    for (int i = 0; i < blocks; i += abreast)
      TORCHINIT_TARGET::fill_groups<L, Sampler, Store, false, abreast>(
          sampler, NearBlocks{block + static_cast<uint64_t>(i), keys}, drawn + 4 * i);
    TORCHINIT_UNROLL
    for (int k = 0; k < 4 * blocks; ++k) {
      if constexpr (std::is_same_v<typename Store::Element, float>)
        values[k] = drawn[k];
      else
        values[k] = L::from_bits(uint32_t{drawn[k]} << 16);
    }
  }
};

struct Constant {
  static constexpr bool is_double = false;

  float value;

  TORCHINIT_INLINE void get(uint64_t, int64_t, int, float (&values)[kPiece]) const {
    TORCHINIT_UNROLL
    for (int k = 0; k < kPiece; ++k) values[k] = value;
  }
};

struct InMemory {
  static constexpr bool is_double = false;

  const float* memory;

  TORCHINIT_INLINE void get(uint64_t, int64_t place, int count, float (&values)[kPiece]) const {
    struct alignas(16) Four {
      float values[4];
    };
    const float* const from = memory + place;
    const bool is_whole = count == kPiece && reinterpret_cast<uintptr_t>(from) % 16 == 0;
    TORCHINIT_UNROLL
    for (int k = 0; k < kPiece; k += 4) {
      Four four{};
      if (is_whole) {
        four = *reinterpret_cast<const Four*>(from + k);
      } else {
        TORCHINIT_UNROLL
        for (int j = 0; j < 4; ++j)
          if (k + j < count) four.values[j] = from[k + j];
      }
      TORCHINIT_UNROLL
      for (int j = 0; j < 4; ++j) values[k + j] = four.values[j];
    }
  }
};

// Calls visit.run(source) for the draws of a plan.
template <class Visitor>
struct VisitDraws {
  uint64_t key;
  const Visitor& visit;

  template <class L, class Store, class Sampler>
  void run(const Sampler& sampler) const {
    if constexpr (std::is_same_v<Store, TORCHINIT_TARGET::StoreFloat32> ||
                  std::is_same_v<Store, TORCHINIT_TARGET::StoreBFloat16>)
      visit.run(Draws<Store, Sampler>{sampler, TORCHINIT_TARGET::round_keys(key)});
  }
};

template <class Visitor>
void visit_draws(const Plan& plan, uint64_t key, const Visitor& visit) {
  using L = TORCHINIT_TARGET::ScalarLanes;
  if (plan.transform != Transform::Constant)
    return TORCHINIT_TARGET::visit_plan<L, L>(plan, VisitDraws<Visitor>{key, visit});
  const uint32_t pattern = static_cast<uint32_t>(plan.pattern);
  visit.run(Constant{L::from_bits(plan.dtype == Dtype::BFloat16 ? pattern << 16 : pattern)});
}

// A job cut into tiles. Rows and columns are counted from the first of the box's blocks.
struct QuantisedTiles {
  QuantisedJob job;
  Extended rows, columns;
  int64_t block_rows, block_columns;  // of the format, no more than there are
  int64_t pieces_across;              // a block
  int64_t block_pieces;
  int held;                        // pieces of a thread; 0 if a block is too large for that
  int blocks_across, blocks_down;  // of a tile
  int64_t tiles_across, tiles_down, count;

  // most: pieces that a thread may have.
  QuantisedTiles(const QuantisedJob& job_, int most)
      : job(job_),
        rows(job.box.first_row, job.box.rows, job.format.rows, job.matrix_rows),
        columns(job.box.first_column, job.box.columns, job.format.columns, job.matrix_columns) {
    constexpr int64_t kLongRow = 32;  // pieces
    block_rows = std::min(job.format.rows, height());
    block_columns = std::min(job.format.columns, width());
    pieces_across = divide_up(block_columns, kPiece);
    block_pieces = block_rows * pieces_across;
    held = blocks_across = blocks_down = 1;
    if (block_pieces > kQuantiseThreads) {
      const bool is_even = kQuantiseThreads % pieces_across == 0;
      held = is_even && block_pieces <= most * kQuantiseThreads && most > 1 ? most : 0;
    } else {
      // Long rows, but few threads without blocks at the end of the columns.
      int64_t across =
          std::min(std::max<int64_t>(1, kLongRow / pieces_across), kQuantiseThreads / block_pieces);
      while (divide_up(columns.blocks, across) * across * 16 > columns.blocks * 17) --across;
      blocks_across = static_cast<int>(across);
      blocks_down =
          static_cast<int>(std::min(kQuantiseThreads / (block_pieces * across), rows.blocks));
    }
    tiles_across = divide_up(columns.blocks, blocks_across);
    tiles_down = divide_up(rows.blocks, blocks_down);
    count = job.box.matrices * tiles_down * tiles_across;
  }

  TORCHINIT_INLINE int64_t height() const { return rows.end - rows.begin; }
  TORCHINIT_INLINE int64_t width() const { return columns.end - columns.begin; }
};

// A tile by its first block.
struct TilePlace {
  int64_t matrix, block_row, block_column;

  TORCHINIT_INLINE TilePlace(const QuantisedTiles& tiles, int64_t number) {
    int64_t over;
    if (tiles.count <= UINT32_MAX) {  // a division of 64 bits takes several times as long
      const uint32_t short_number = static_cast<uint32_t>(number);
      over = short_number / static_cast<uint32_t>(tiles.tiles_across);
      matrix = static_cast<uint32_t>(over) / static_cast<uint32_t>(tiles.tiles_down);
    } else {
      over = number / tiles.tiles_across;
      matrix = over / tiles.tiles_down;
    }
    block_row = (over - matrix * tiles.tiles_down) * tiles.blocks_down;
    block_column = (number - over * tiles.tiles_across) * tiles.blocks_across;
  }
};

// Values of a row.
struct Piece {
  int64_t matrix, row, column;  // of the first
  int count;                    // of them that are in the matrix
};

struct ScaleOf {
  const WholeScale& whole;
  uint32_t largest;
  TORCHINIT_TARGET::BlockScale scale;

  template <ScaleRule rule>
  TORCHINIT_INLINE void run() {
    scale = TORCHINIT_TARGET::scale_of<rule>(largest, whole);
  }
};

// The steps of all threads.
template <class Source>
struct Quantiser {
  using L = TORCHINIT_TARGET::ScalarLanes;

  const Source& source;
  const QuantisedTiles& tiles;

  // Returns the bits of the largest magnitude.
  TORCHINIT_INLINE uint32_t get(const Piece& piece, float (&values)[kPiece]) const {
    const QuantisedJob& job = tiles.job;
    const int64_t above =
        (job.box.first_matrix + piece.matrix) * job.matrix_rows + tiles.rows.begin + piece.row;
    const int64_t index = above * job.matrix_columns + tiles.columns.begin + piece.column;
    const int64_t place =
        (piece.matrix * tiles.height() + piece.row) * tiles.width() + piece.column;
    source.get(static_cast<uint64_t>(index), place, piece.count, values);
    return largest_of(values, piece.count);
  }

  static TORCHINIT_INLINE uint32_t largest_of(const float (&values)[kPiece], int64_t count) {
    uint32_t largest = 0;
    TORCHINIT_UNROLL
    for (int k = 0; k < kPiece; ++k) {
      const uint32_t magnitude = L::bits_of(values[k]) & 0x7fffffffu;
      if (k < count && largest < magnitude) largest = magnitude;
    }
    return largest;
  }

  TORCHINIT_INLINE TORCHINIT_TARGET::BlockScale scale(uint32_t largest) const {
    ScaleOf scale{tiles.job.whole, largest, {}};
    TORCHINIT_TARGET::visit_rule(tiles.job.format.rule, scale);
    return scale.scale;
  }

  TORCHINIT_INLINE void store_scale(int64_t matrix, int64_t row, int64_t column,
                                    uint32_t stored) const {
    const BlockFormat& format = tiles.job.format;
    const int64_t number = (matrix * tiles.rows.blocks + row) * tiles.columns.blocks + column;
    const uint32_t scale = TORCHINIT_TARGET::stored_scale(format.rule, format.scale_dtype, stored);
    if (format.scale_dtype == ScaleDtype::Float32)
      reinterpret_cast<uint32_t*>(tiles.job.scales)[number] = scale;
    else
      tiles.job.scales[number] = static_cast<uint8_t>(scale);
  }

  // Stores what is in the box of a piece; get_again: draws the values.
  template <class GetAgain>
  TORCHINIT_INLINE void store_piece(const Piece& piece, float factor, float (&values)[kPiece],
                                    const GetAgain& get_again) const {
    const MatrixBox& box = tiles.job.box;
    const int64_t row = tiles.rows.begin + piece.row - box.first_row;
    const int64_t column = tiles.columns.begin + piece.column - box.first_column;
    const int64_t left = box.columns - column;
    const int low = column >= 0 ? 0 : column < -kPiece ? kPiece : static_cast<int>(-column);
    const int high = left < piece.count ? static_cast<int>(left) : piece.count;
    if (row < 0 || row >= box.rows || low >= high) return;
    get_again();
    uint8_t* const to = tiles.job.payload;
    const int64_t first = (piece.matrix * box.rows + row) * box.columns + column + low;
    if (tiles.job.format.packed) {
      uint32_t words[kPiece / 8] = {};
      TORCHINIT_UNROLL
      for (int k = 0; k < kPiece; ++k)
        words[k / 8] |=
            TORCHINIT_TARGET::round_to_small<L, TORCHINIT_TARGET::Float4E2M1>(values[k] * factor)
            << (k % 8 * 4);
      store_bytes(to + first / 2, words, low / 2, high / 2);
    } else {
      uint32_t words[kPiece / 4] = {};
      TORCHINIT_UNROLL
      for (int k = 0; k < kPiece; k += 2)
        words[k / 4] |= TORCHINIT_TARGET::float8_pairs<L, TORCHINIT_TARGET::Float8E4M3>(
                            values[k] * factor, values[k + 1] * factor)
                        << (k % 4 * 8);
      store_bytes(to + first, words, low, high);
    }
  }

 private:
  // Bytes `low` to `high` - 1 of some words; to: where the first of them goes.
  template <int count>
  static TORCHINIT_INLINE void store_bytes(uint8_t* to, const uint32_t (&words)[count], int low,
                                           int high) {
    struct alignas(4 * count) All {
      uint32_t words[count];
    };
    const uintptr_t address = reinterpret_cast<uintptr_t>(to) - static_cast<uintptr_t>(low);
    if (low == 0 && high == 4 * count && address % sizeof(All) == 0) {
      All all;
      TORCHINIT_UNROLL
      for (int i = 0; i < count; ++i) all.words[i] = words[i];
      *reinterpret_cast<All*>(to) = all;
      return;
    }
    TORCHINIT_UNROLL
    for (int i = 0; i < count; ++i) {
      if (address % 4 == 0 && 4 * i >= low && 4 * i + 4 <= high) {
        *reinterpret_cast<uint32_t*>(to + (4 * i - low)) = words[i];
        continue;
      }
      TORCHINIT_UNROLL
      for (int k = 4 * i; k < 4 * i + 4; ++k)
        if (k >= low && k < high) to[k - low] = static_cast<uint8_t>(words[i] >> (k % 4 * 8));
    }
  }
};

// Blocks whose values stay in registers.
template <int held, class Source>
class QuantiseThread {
 public:
  // The bits of the largest magnitude of each block: of a tile, of the next one, which becomes zero
  // meanwhile, and of the last one, which other threads may still read. So one barrier a tile is
  // enough.
  struct Shared {
    uint32_t largest[3][kQuantiseThreads];
  };

  TORCHINIT_INLINE QuantiseThread(const Source& source, const QuantisedTiles& tiles, int thread)
      : do_{source, tiles}, thread_(thread) {
    const int across_block = static_cast<int>(tiles.pieces_across),
              block_rows = static_cast<int>(tiles.block_rows);
    const int all = across_block * tiles.blocks_across;
    row_ = thread / all;
    const int piece = thread - row_ * all, across = piece / across_block;
    const int down = row_ / block_rows, column = (piece - across * across_block) * kPiece;
    const int size = static_cast<int>(tiles.block_columns);
    column_ = across * size + column;
    size_ = size - column < kPiece ? size - column : kPiece;
    if (down >= tiles.blocks_down) size_ = 0;
    block_ = down * tiles.blocks_across + across;
    is_begin_ = size_ && column == 0 && row_ == down * block_rows;
  }

  TORCHINIT_INLINE void begin(Shared& shared) const { shared.largest[0][thread_] = 0; }

  // Before the barrier.
  TORCHINIT_INLINE void measure(Shared& shared, int64_t tile) {
    shared.largest[turn_ == 2 ? 0 : turn_ + 1][thread_] = 0;
    uint32_t largest = 0;
    TORCHINIT_UNROLL
    for (int i = 0; i < held; ++i) {
      const Piece piece = place(tile, i);
      if (piece.count <= 0) continue;
      const uint32_t found = do_.get(piece, values_[i]);
      if (largest < found) largest = found;
    }
    raise(&shared.largest[turn_][block_], largest);
  }

  // After it.
  TORCHINIT_INLINE void store(const Shared& shared, int64_t tile) {
    const QuantisedTiles& tiles = do_.tiles;
    const auto scale = do_.scale(shared.largest[turn_][block_]);
    turn_ = turn_ == 2 ? 0 : turn_ + 1;
    if (tiles.job.scales && is_begin_) {
      const TilePlace at(tiles, tile);
      const int down = block_ / tiles.blocks_across;
      const int64_t row = at.block_row + down,
                    column = at.block_column + block_ - down * tiles.blocks_across;
      if (row < tiles.rows.blocks && column < tiles.columns.blocks)
        do_.store_scale(at.matrix, row, column, scale.stored);
    }
    if (!tiles.job.payload) return;
    TORCHINIT_UNROLL
    for (int i = 0; i < held; ++i) do_.store_piece(place(tile, i), scale.factor, values_[i], [] {});
  }

 private:
  TORCHINIT_INLINE Piece place(int64_t tile, int i) const {
    const QuantisedTiles& tiles = do_.tiles;
    const TilePlace at(tiles, tile);
    int row = row_, size = size_;
    if constexpr (held > 1) {  // the same columns in other rows of the only block
      row += i * (kQuantiseThreads / static_cast<int>(tiles.pieces_across));
      if (row >= tiles.block_rows) size = 0;
    }
    Piece piece{at.matrix, at.block_row * tiles.block_rows + row,
                at.block_column * tiles.block_columns + column_, size};
    const int64_t left = tiles.width() - piece.column;
    if (left < piece.count) piece.count = static_cast<int>(left);
    if (piece.row >= tiles.height()) piece.count = 0;
    return piece;
  }

  const Quantiser<Source> do_;
  const int thread_;
  int row_, column_, size_, block_;  // of its first piece in the tile
  bool is_begin_;                    // of a block
  int turn_ = 0;
  float values_[held][kPiece];
};

// Blocks of any size, one after the other by all threads: values are drawn twice.
template <class Source>
class LargeBlockThread {
 public:
  struct Shared {
    uint32_t largest;
  };

  TORCHINIT_INLINE LargeBlockThread(const Source& source, const QuantisedTiles& tiles, int thread)
      : do_{source, tiles}, thread_(thread) {}

  // Before, between and after two barriers, and another one before the next.
  TORCHINIT_INLINE void begin(Shared& shared) const {
    if (thread_ == 0) shared.largest = 0;
  }
  TORCHINIT_INLINE void measure(Shared& shared, int64_t tile) const {
    uint32_t largest = 0;
    float values[kPiece];
    for (int64_t i = thread_; i < do_.tiles.block_pieces; i += kQuantiseThreads) {
      const Piece piece = place(tile, i);
      if (piece.count <= 0) continue;
      const uint32_t found = do_.get(piece, values);
      if (largest < found) largest = found;
    }
    raise(&shared.largest, largest);
  }
  TORCHINIT_INLINE void store(const Shared& shared, int64_t tile) const {
    const QuantisedTiles& tiles = do_.tiles;
    const auto scale = do_.scale(shared.largest);
    if (tiles.job.scales && thread_ == 0) {
      const TilePlace at(tiles, tile);
      do_.store_scale(at.matrix, at.block_row, at.block_column, scale.stored);
    }
    if (!tiles.job.payload) return;
    float values[kPiece];
    for (int64_t i = thread_; i < tiles.block_pieces; i += kQuantiseThreads) {
      const Piece piece = place(tile, i);
      do_.store_piece(piece, scale.factor, values, [&] { do_.get(piece, values); });
    }
  }

 private:
  TORCHINIT_INLINE Piece place(int64_t tile, int64_t number) const {
    const QuantisedTiles& tiles = do_.tiles;
    const TilePlace at(tiles, tile);
    const int64_t row = number / tiles.pieces_across;
    const int64_t column = (number - row * tiles.pieces_across) * kPiece;
    Piece piece{at.matrix, at.block_row * tiles.block_rows + row,
                at.block_column * tiles.block_columns + column, kPiece};
    int64_t left = tiles.width() - piece.column;
    if (tiles.block_columns - column < left) left = tiles.block_columns - column;
    if (left < kPiece) piece.count = static_cast<int>(left);
    if (piece.row >= tiles.height()) piece.count = 0;
    return piece;
  }

  const Quantiser<Source> do_;
  const int thread_;
};

// The largest magnitude of consecutive values: of a thread's pieces, then of the thread block.
template <class Source>
struct LargestThread {
  struct Shared {
    uint32_t largest;
  };

  const Source& source;
  int thread;

  TORCHINIT_INLINE void begin(Shared& shared) const {
    if (thread == 0) shared.largest = 0;
  }
  // Between barriers: of every `step`-th piece from `first` on.
  TORCHINIT_INLINE void measure(Shared& shared, int64_t count, int64_t first, int64_t step) const {
    uint32_t largest = 0;
    for (int64_t piece = first; piece < divide_up(count, kPiece); piece += step) {
      float values[kPiece];
      source.get(static_cast<uint64_t>(piece) * kPiece, 0, kPiece, values);
      const uint32_t found = Quantiser<Source>::largest_of(values, count - piece * kPiece);
      if (largest < found) largest = found;
    }
    raise(&shared.largest, largest);
  }
  TORCHINIT_INLINE void end(const Shared& shared, uint32_t* to) const {
    if (thread == 0) raise(to, shared.largest);
  }
};

}  // namespace torchinit::cuda
