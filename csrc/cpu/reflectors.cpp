#include "reflectors.h"

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "../job/plan.h"
#include "../math/reflector.h"
#include "kernels.h"
#include "parallel.h"

namespace torchinit::cpu {
namespace {

void fill_row(const ReflectorBlock& block, const Plan& plan, const InstructionSet& set,
              int64_t row) {
  const auto place = TORCHINIT_TARGET::reflector_place(row, block.first, block.count, block.length);
  const int64_t element = element_size(block.dtype);
  const auto at = [&](void* memory, int64_t i) {
    return static_cast<unsigned char*>(memory) + i * element;
  };
  unsigned char* const vector = at(block.vectors, place.begin);
  const uint64_t key = static_cast<uint64_t>(block.keys[place.matrix]);
  std::memset(at(block.vectors, place.begin - place.zeros), 0,
              static_cast<size_t>(place.zeros * element));
  set.fill(plan, key, place.index, vector, place.size, false);
  set.reflect(block.dtype, vector, place.size, at(block.half_norms, row), at(block.signs, row));
}

// Calls do_items(begin, end) on pieces of some items, each of which costs as much as so many
// elements drawn, from several threads if that is worth it.
template <class Items>
void in_pieces(int64_t items, int64_t cost, int threads, const Items& do_items) {
  const int64_t workers = std::min(useful_threads(items * cost, threads), items);
  const int64_t piece =
      workers <= 1 ? std::max<int64_t>(1, items)
                   : std::max<int64_t>(1, kLeastPerThread / 4 / std::max<int64_t>(1, cost));
  on_threads(workers, [&](const auto& take) {
    for (int64_t begin; (begin = take() * piece) < items;)
      do_items(begin, std::min(items, begin + piece));
  });
}

template <class T>
void copy_matrix(const T* from, int64_t from_stride, T* to, const SmallMatrices& work) {
  for (int64_t i = 0; i < work.m; ++i)
    for (int64_t j = 0; j < work.n; ++j)
      to[i * work.row_stride + j * work.column_stride] = from[i * from_stride + j];
}

template <class T>
void fill_small(const SmallMatrices& work, const Plan& plan, const InstructionSet& set,
                int64_t begin, int64_t end) {
  const int64_t m = work.m, n = work.n;
  const int64_t padded = (n + kColumns - 1) / kColumns * kColumns;
  std::vector<T> vectors(static_cast<size_t>(n * m)), half_norms(static_cast<size_t>(n)),
      signs(static_cast<size_t>(n));
  std::vector<T> q(static_cast<size_t>(m * padded));
  for (int64_t matrix = begin; matrix < end; ++matrix) {
    const ReflectorBlock block = {work.dtype,     work.keys + matrix, 1,           0, n, m,
                                  vectors.data(), half_norms.data(),  signs.data()};
    for (int64_t row = 0; row < n; ++row) fill_row(block, plan, set, row);
    std::fill(q.begin(), q.end(), T(0));
    set.multiply(work.dtype, vectors.data(), half_norms.data(), signs.data(), work.gain, m, n,
                 q.data(), padded);
    copy_matrix(q.data(), padded, static_cast<T*>(work.data[matrix]), work);
  }
}

Plan standard_normal(Dtype dtype) {
  const double parameters[4] = {0, 1, 0, 0};
  return make_plan(Distribution::Normal, dtype, parameters);
}

// Reflectors drawn at a time before they are written side by side: a cache line of float32.
constexpr int64_t kSideBySide = 16;

// Draws rows from `begin` to before `end` of one matrix, and writes row r's element i to
// to[i * step + r - begin].
template <class T>
void fill_columns(const ReflectorBlock& block, const Plan& plan, const InstructionSet& set,
                  int64_t matrix, int64_t begin, int64_t end, int64_t step, T* memory, T* to) {
  const int64_t width = block.length - block.first - begin, rows = end - begin;
  const int64_t place = matrix * block.count + begin;
  const ReflectorBlock some = {block.dtype,
                               block.keys + matrix,
                               1,
                               block.first + begin,
                               rows,
                               block.length,
                               memory,
                               static_cast<T*>(block.half_norms) + place,
                               static_cast<T*>(block.signs) + place};
  for (int64_t row = 0; row < rows; ++row) fill_row(some, plan, set, row);
  for (int64_t i = 0; i < begin; ++i)
    for (int64_t row = 0; row < rows; ++row) to[i * step + row] = 0;
  to += begin * step;
  const auto transpose = [&](auto count) {
    for (int64_t i = 0; i < width; ++i)
      for (int64_t row = 0; row < count; ++row) to[i * step + row] = memory[row * width + i];
  };
  if (rows == kSideBySide)
    transpose(std::integral_constant<int64_t, kSideBySide>());  // whole lines, unrolled
  else
    transpose(rows);
}

template <class T>
void fill_side_by_side(const ReflectorBlock& block, int64_t step, int threads) {
  const Plan plan = standard_normal(block.dtype);
  const InstructionSet& set = active_set();
  const int64_t width = block.length - block.first;
  const int64_t groups = (block.count + kSideBySide - 1) / kSideBySide;
  in_pieces(block.matrices * groups, width * kSideBySide, threads, [&](int64_t begin, int64_t end) {
    std::vector<T> memory(static_cast<size_t>(kSideBySide * width));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t matrix = i / groups, first = i % groups * kSideBySide;
      fill_columns(block, plan, set, matrix, first, std::min(block.count, first + kSideBySide),
                   step, memory.data(),
                   static_cast<T*>(block.vectors) + matrix * width * step + first);
    }
  });
}

}  // namespace

void fill_reflectors_side_by_side(const ReflectorBlock& block, int64_t step, int threads) {
  if (block.dtype == Dtype::Float64)
    fill_side_by_side<double>(block, step, threads);
  else
    fill_side_by_side<float>(block, step, threads);
}

void fill_reflectors(const ReflectorBlock& block, int threads) {
  const Plan plan = standard_normal(block.dtype);
  const InstructionSet& set = active_set();
  in_pieces(block.matrices * block.count, block.length - block.first, threads,
            [&](int64_t begin, int64_t end) {
              for (int64_t row = begin; row < end; ++row) fill_row(block, plan, set, row);
            });
}

void invert_triangles(Dtype dtype, int64_t matrices, int64_t n, void* data, int threads) {
  const InstructionSet& set = active_set();
  const int64_t bytes = n * n * element_size(dtype);
  in_pieces(matrices, n * n * (n / kColumns + 1) / 4, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      set.invert(dtype, static_cast<unsigned char*>(data) + i * bytes, n);
  });
}

void fill_small_orthogonal(const SmallMatrices& work, int threads) {
  const Plan plan = standard_normal(work.dtype);
  const InstructionSet& set = active_set();
  in_pieces(work.matrices, work.m * work.n * (work.n / kColumns + 1), threads,
            [&](int64_t begin, int64_t end) {
              if (work.dtype == Dtype::Float64)
                fill_small<double>(work, plan, set, begin, end);
              else
                fill_small<float>(work, plan, set, begin, end);
            });
}

}  // namespace torchinit::cpu
