// Draws tiles of complete blocks in the cache, and quantises each there.
#include "quantised.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "../base/float_environment.h"
#include "helpers.h"
#include "kernels.h"
#include "memory.h"
#include "parallel.h"

namespace torchinit::cpu {
namespace {

// Values drawn at a time, if a block of the format is not larger: 32 KiB.
constexpr int64_t kTile = 1 << 13;
// Rows of a tile are at least so long: the draws of short ones take longer.
constexpr int64_t kLeastColumns = 512;

void share_pieces(int64_t pieces, int64_t elements, int threads,
                  const std::function<void(int64_t)>& piece) {
  const int64_t workers =
      elements < kLeastShared ? 1 : std::min(pieces, useful_threads(elements, threads));
  if (workers > 1) return share(std::make_shared<Pieces>(pieces, piece), workers - 1);
  const FloatEnvironment environment;  // share() has one of its own
  for (int64_t i = 0; i < pieces; ++i) piece(i);
}

// Memory of this thread for the values of a tile.
float* tile_memory(int64_t count) {
  thread_local std::vector<float> memory;
  if (memory.size() < static_cast<size_t>(count)) memory.resize(static_cast<size_t>(count));
  return memory.data();
}

// Draws rows of consecutive logical indices, `step` apart, as float32, one after the other.
void draw(const InstructionSet& set, const Plan& plan, uint64_t key, int64_t first, int64_t rows,
          int64_t columns, int64_t step, float* values) {
  const int64_t count = rows * columns;
  // bfloat16 values are drawn into the upper half of the memory, and widened from its begin on.
  const bool narrow = plan.dtype == Dtype::BFloat16;
  uint16_t* const halves = reinterpret_cast<uint16_t*>(values) + count;
  void* const to = narrow ? static_cast<void*>(halves) : values;
  const uint64_t index = static_cast<uint64_t>(first);
  if (columns == step || rows == 1) {
    set.fill(plan, key, index, to, count, false);
  } else {
    const Dimension outer{rows, columns, step};
    set.fill_rows(plan, key, {&outer, 1, columns, index}, 0, count, to, true, false);
  }
  if (!narrow) return;
  for (int64_t i = 0; i < count; ++i) {
    uint16_t half;
    std::memcpy(&half, halves + i, sizeof half);
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    std::memcpy(values + i, &bits, sizeof bits);
  }
}

class Tiles {
 public:
  explicit Tiles(const QuantisedJob& job)
      : job_(job),
        set_(active_set()),
        rows_(job.box.first_row, job.box.rows, job.format.rows, job.matrix_rows),
        columns_(job.box.first_column, job.box.columns, job.format.columns, job.matrix_columns) {
    const int64_t width = columns_.end - columns_.begin;
    const BlockFormat& format = job.format;
    const int64_t row_blocks =
        std::max<int64_t>(1, kTile / std::max<int64_t>(1, std::min(width, kTile)) / format.rows);
    tile_rows_ = row_blocks * format.rows;
    const int64_t columns = std::max(kLeastColumns, kTile / tile_rows_);
    tile_columns_ = std::min(divide_up(columns, format.columns) * format.columns, width);
    across_ = divide_up(width, tile_columns_);
    down_ = divide_up(rows_.end - rows_.begin, tile_rows_);
  }

  int64_t count() const { return job_.box.matrices * down_ * across_; }

  void run(int64_t number) const {
    const int64_t at = number % across_, down = number / across_ % down_;
    const int64_t matrix = number / across_ / down_;
    const int64_t row = rows_.begin + down * tile_rows_;
    const int64_t column = columns_.begin + at * tile_columns_;
    const int64_t rows = std::min(tile_rows_, rows_.end - row);
    const int64_t columns = std::min(tile_columns_, columns_.end - column);
    const BlockFormat& format = job_.format;
    const MatrixBox& box = job_.box;

    const auto within = [](int64_t x, int64_t count) {
      return std::min(std::max<int64_t>(x, 0), count);
    };
    Tile tile{format, job_.whole, nullptr, columns, rows, columns, 0,
              0,      0,          0,       nullptr, 0,    nullptr, 0};
    tile.first_row = within(box.first_row - row, rows);
    tile.end_row = within(box.first_row + box.rows - row, rows);
    tile.first_column = within(box.first_column - column, columns);
    tile.end_column = within(box.first_column + box.columns - column, columns);
    tile.payload_stride = format.packed ? box.columns / 2 : box.columns;
    if (job_.payload) {
      const int64_t before = column + tile.first_column - box.first_column;
      tile.payload =
          job_.payload +
          (matrix * box.rows + row + tile.first_row - box.first_row) * tile.payload_stride +
          (format.packed ? before / 2 : before);
    }
    const int64_t bytes = format.scale_dtype == ScaleDtype::Float32 ? 4 : 1;
    tile.scale_stride = columns_.blocks * bytes;
    if (job_.scales) {
      const int64_t block_row = row / format.rows - rows_.first_block;
      const int64_t block = column / format.columns - columns_.first_block;
      tile.scales =
          job_.scales + (matrix * rows_.blocks + block_row) * tile.scale_stride + block * bytes;
    }
    if (job_.values) {
      tile.stride = columns_.end - columns_.begin;
      tile.values = job_.values +
                    (matrix * (rows_.end - rows_.begin) + row - rows_.begin) * tile.stride +
                    column - columns_.begin;
    } else {
      float* const values = tile_memory(rows * columns);
      const int64_t all_rows = (matrix + box.first_matrix) * job_.matrix_rows + row;
      draw(set_, job_.plan, job_.key, all_rows * job_.matrix_columns + column, rows, columns,
           job_.matrix_columns, values);
      tile.values = values;
    }
    set_.quantise(tile);
  }

 private:
  const QuantisedJob& job_;
  const InstructionSet& set_;
  const Extended rows_, columns_;
  int64_t tile_rows_, tile_columns_, across_, down_;
};

}  // namespace

void fill_quantised(const QuantisedJob& job, int threads) {
  const MatrixBox& box = job.box;
  if (box.matrices == 0 || box.rows == 0 || box.columns == 0) return;
  const Tiles tiles(job);
  share_pieces(tiles.count(), box.matrices * box.rows * box.columns, threads,
               [&](int64_t number) { tiles.run(number); });
}

float largest_magnitude(const Plan& plan, uint64_t key, int64_t count, int threads) {
  const InstructionSet& set = active_set();
  const int64_t pieces = divide_up(count, kTile);
  std::atomic<uint32_t> largest{0};
  share_pieces(pieces, count, threads, [&](int64_t number) {
    const int64_t first = number * kTile, some = std::min(kTile, count - first);
    float* const values = tile_memory(kTile);
    draw(set, plan, key, first, 1, some, some, values);
    const uint32_t found = set.largest(values, some);
    for (uint32_t known = largest.load(); known < found;)
      if (largest.compare_exchange_weak(known, found)) break;
  });
  const uint32_t bits = largest.load();
  float magnitude;
  std::memcpy(&magnitude, &bits, sizeof magnitude);
  return magnitude;
}

}  // namespace torchinit::cpu
