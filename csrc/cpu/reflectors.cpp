#include "reflectors.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "../base/float_environment.h"
#include "kernels.h"

namespace torchinit::cpu {
namespace {

// Threads are not worth waking for less than this: elements drawn, or the same time.
constexpr int64_t kCostPerThread = 1 << 14;

void fill_row(const ReflectorBlock& block, const Plan& plan, const InstructionSet& set,
              int64_t row) {
  const int64_t element = element_size(block.dtype);
  const int64_t before = row % block.count;
  const int64_t width = block.length - block.first;
  unsigned char* const begin = static_cast<unsigned char*>(block.vectors) + row * width * element;
  unsigned char* const vector = begin + before * element;
  unsigned char* const half = static_cast<unsigned char*>(block.halves) + row * element;
  unsigned char* const sign = static_cast<unsigned char*>(block.signs) + row * element;
  const uint64_t number = static_cast<uint64_t>(block.first + before);
  const uint64_t key = static_cast<uint64_t>(block.keys[row / block.count]);
  std::memset(begin, 0, static_cast<size_t>(before * element));
  set.fill(plan, key, number * static_cast<uint64_t>(block.length) + number, vector, width - before,
           false);
  set.reflect(block.dtype, vector, width - before, half, sign);
}
// Calls do_rows(begin, end) on pieces of the rows, from several threads if that is worth it.
template <class Rows>
void in_parallel(int64_t rows, int64_t row_cost, int threads, const Rows& do_rows) {
  const int64_t useful = (rows * row_cost + kCostPerThread - 1) / kCostPerThread;
  const int64_t workers = std::min<int64_t>(threads, std::min(useful, rows));
  if (workers <= 1) {
    const FloatEnvironment environment;
    do_rows(0, rows);
    return;
  }
  const int64_t piece = std::max<int64_t>(1, kCostPerThread / 4 / std::max<int64_t>(1, row_cost));
  std::atomic<int64_t> next{0};
#pragma omp parallel num_threads(static_cast<int>(workers))
  {
    const FloatEnvironment environment;
    for (int64_t begin; (begin = next.fetch_add(piece)) < rows;)
      do_rows(begin, std::min(rows, begin + piece));
  }
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
  std::vector<T> vectors(static_cast<size_t>(n * m)), halves(static_cast<size_t>(n)),
      signs(static_cast<size_t>(n));
  std::vector<T> q(static_cast<size_t>(m * padded));
  for (int64_t matrix = begin; matrix < end; ++matrix) {
    const ReflectorBlock block = {work.dtype,     work.keys + matrix, 1,           0, n, m,
                                  vectors.data(), halves.data(),      signs.data()};
    for (int64_t row = 0; row < n; ++row) fill_row(block, plan, set, row);
    std::fill(q.begin(), q.end(), T(0));
    set.multiply(work.dtype, vectors.data(), halves.data(), signs.data(), work.gain, m, n, q.data(),
                 padded);
    copy_matrix(q.data(), padded, static_cast<T*>(work.data[matrix]), work);
  }
}

Plan standard_normal(Dtype dtype) {
  const double parameters[4] = {0, 1, 0, 0};
  return make_plan(Distribution::Normal, dtype, parameters);
}

}  // namespace

void fill_reflectors(const ReflectorBlock& block, int threads) {
  const Plan plan = standard_normal(block.dtype);
  const InstructionSet& set = active_set();
  in_parallel(block.matrices * block.count, block.length - block.first, threads,
              [&](int64_t begin, int64_t end) {
                for (int64_t row = begin; row < end; ++row) fill_row(block, plan, set, row);
              });
}

void invert_triangles(Dtype dtype, int64_t matrices, int64_t n, void* data, int threads) {
  const InstructionSet& set = active_set();
  const int64_t bytes = n * n * element_size(dtype);
  in_parallel(matrices, n * n * (n / kColumns + 1) / 4, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      set.invert(dtype, static_cast<unsigned char*>(data) + i * bytes, n);
  });
}

void fill_small_orthogonal(const SmallMatrices& work, int threads) {
  const Plan plan = standard_normal(work.dtype);
  const InstructionSet& set = active_set();
  in_parallel(work.matrices, work.m * work.n * (work.n / kColumns + 1), threads,
              [&](int64_t begin, int64_t end) {
                if (work.dtype == Dtype::Float64)
                  fill_small<double>(work, plan, set, begin, end);
                else
                  fill_small<float>(work, plan, set, begin, end);
              });
}

}  // namespace torchinit::cpu
