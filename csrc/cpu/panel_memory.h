// Copies between panels and the memory of a tensor.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "../job/orthogonal_job.h"
#include "kernels.h"
#include "source.h"

namespace torchinit::cpu {

// Some columns of a tall matrix: side by side in a panel, and anywhere in a tensor.
template <class T>
class PanelMemory {
 public:
  PanelMemory(const OrthogonalJob& job, const Source<T>& source, void* data, int64_t first,
              int64_t end)
      : rows_(job.rows),
        dtype_(job.dtype),
        size_(element_size(job.dtype)),
        kernels_(source.kernels),
        round_(source.set.round),
        data_(static_cast<unsigned char*>(data)),
        columns_(job.columns, first, end) {}

  // Whether the tensor has any element of these columns.
  bool any() const { return columns_.count > 0; }

  // Writes rows `begin` to `end` - 1 of the matrix; the panel's first is number `first`.
  void store(const T* panel, int64_t begin, int64_t end, int64_t first = 0) const {
    for (int64_t row = begin; row < end; row += kRows)
      store_tile(panel + (row - first) * kBlock,
                 Places<kRows>(rows_, row, std::min(end, row + kRows)));
  }

  // Reads them back, if the tensor has the dtype that matrices are formed in.
  void load(T* panel, int64_t begin, int64_t end, int64_t first = 0) const {
    for (int64_t row = begin; row < end; row += kRows)
      load_tile(panel + (row - first) * kBlock,
                Places<kRows>(rows_, row, std::min(end, row + kRows)));
  }

 private:
  static constexpr int kRows = 64;

  // Some of the rows or columns, by their number from the first on, and their places.
  template <int most>
  struct Places {
    int which[most];
    int64_t place[most];
    int count;
    bool is_run;  // neighbours in both

    Places(const Axis& axis, int64_t first, int64_t end)
        : count(axis.locate(first, end, which, place)), is_run(true) {
      for (int i = 1; i < count; ++i)
        is_run = is_run && which[i] == which[0] + i && place[i] == place[0] + i;
    }
  };

  unsigned char* at(int64_t place) const { return data_ + place * size_; }

  void write(const T* from, unsigned char* to, int count) const {
    if constexpr (sizeof(T) == sizeof(float))
      if (size_ < static_cast<int>(sizeof(T))) return round_(dtype_, from, to, count);
    std::memcpy(to, from, static_cast<size_t>(count) * sizeof(T));
  }

  void store_tile(const T* tile, const Places<kRows>& rows) const {
    if (rows.count == 0) return;
    if (columns_.is_run) {
      for (int i = 0; i < rows.count; ++i)
        write(tile + rows.which[i] * kBlock + columns_.which[0],
              at(rows.place[i] + columns_.place[0]), columns_.count);
      return;
    }
    alignas(64) T turned[kBlock * kRows];
    kernels_.turn(tile, kBlock, turned, kRows, round_up(rows.which[rows.count - 1] + 1, 4), kBlock,
                  nullptr);
    alignas(64) unsigned char narrow[kRows * sizeof(T)];
    for (int j = 0; j < columns_.count; ++j) {
      const T* const column = turned + columns_.which[j] * kRows;
      if (rows.is_run) {
        write(column + rows.which[0], at(rows.place[0] + columns_.place[j]), rows.count);
        continue;
      }
      write(column, narrow, rows.which[rows.count - 1] + 1);
      for (int i = 0; i < rows.count; ++i)
        copy_one(narrow + rows.which[i] * size_, at(rows.place[i] + columns_.place[j]));
    }
  }

  void load_tile(T* tile, const Places<kRows>& rows) const {
    if (rows.count == 0) return;
    if (columns_.is_run) {
      for (int i = 0; i < rows.count; ++i)
        std::memcpy(tile + rows.which[i] * kBlock + columns_.which[0],
                    at(rows.place[i] + columns_.place[0]),
                    static_cast<size_t>(columns_.count) * sizeof(T));
      return;
    }
    alignas(64) T turned[kBlock * kRows];
    for (int j = 0; j < columns_.count; ++j) {
      T* const column = turned + columns_.which[j] * kRows;
      if (rows.is_run)
        std::memcpy(column + rows.which[0], at(rows.place[0] + columns_.place[j]),
                    static_cast<size_t>(rows.count) * sizeof(T));
      else
        for (int i = 0; i < rows.count; ++i)
          std::memcpy(column + rows.which[i], at(rows.place[i] + columns_.place[j]), sizeof(T));
    }
    kernels_.turn(turned, kRows, tile, kBlock, kBlock, round_up(rows.which[rows.count - 1] + 1, 4),
                  nullptr);
  }

  void copy_one(const unsigned char* from, unsigned char* to) const {
    if (size_ == 1)
      *to = *from;
    else if (size_ == 2)
      std::memcpy(to, from, 2);
    else if (size_ == 4)
      std::memcpy(to, from, 4);
    else
      std::memcpy(to, from, 8);
  }

  const Axis& rows_;
  const Dtype dtype_;
  const int size_;
  const BlockKernels<T>& kernels_;
  const RoundKernel round_;
  unsigned char* const data_;
  const Places<kBlock> columns_;
};

}  // namespace torchinit::cpu
