// The work of one thread for orthogonal matrices, kernel by kernel, in the order of
// docs/streams.md, section 5. The host runs it too, in tests/native/cuda_on_host.cpp.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../job/orthogonal_job.h"
#include "../job/visit_plan.h"
#include "../math/reflector.h"
#include "../math/samplers.h"
#include "../math/step.h"
#include "../simd/scalar.h"
#include "product_thread.h"

namespace torchinit::cuda {

constexpr int kMatricesALaunch = 64;
constexpr int kAxisRank = 8;

// The position of a thread in its grid.
struct Place {
  int64_t x;
  int y, z, thread;
};

// An Axis as plain data.
struct DeviceAxis {
  Dimension dimensions[kAxisRank];
  int rank;
  int64_t first, count;

  // The number of the i-th row or column present, and its position in memory.
  TORCHINIT_INLINE void locate(int64_t i, int64_t& number, int64_t& place) const {
    number = first;
    place = 0;
    for (int d = rank - 1; d >= 0; --d) {
      const int64_t at = i % dimensions[d].size;
      number += at * dimensions[d].logical_stride;
      place += at * dimensions[d].memory_stride;
      i /= dimensions[d].size;
    }
  }
};

// One wave, of some matrices.
template <class T>
struct DeviceWave {
  Reflectors all;
  int64_t block, end_block;    // of the wave
  int64_t column, end_column;  // that are formed
  T gain, factor;
  Dtype dtype;
  // Memory, and its size for one matrix.
  T *blocks, *grams, *partials, *solved, *own;
  int64_t blocks_size, grams_size, partials_size, solved_size, own_size;
  // Of the columns being formed: in the tensor, unless they have their own memory.
  bool is_own;
  int64_t row_step, column_step;
  DeviceAxis rows, columns;
  uint64_t keys[kMatricesALaunch];
  void* data[kMatricesALaunch];

  static TORCHINIT_INLINE int64_t block_size(int64_t length) {
    return length * kBlock + kBlock * kBlock + 2 * kBlock;
  }
  // A block's vectors, followed by its triangle, half norms and heads.
  TORCHINIT_INLINE T* vectors(int matrix, int64_t number) const {
    // The blocks before it in memory: number + 1 to end_block - 1.
    const int64_t before = end_block - 1 - number;
    const int64_t numbers = before * (number + 1 + end_block - 1) / 2;
    return blocks + matrix * blocks_size + before * block_size(all.m) - numbers * kBlock * kBlock;
  }
  TORCHINIT_INLINE T* triangle(int matrix, int64_t number) const {
    return vectors(matrix, number) + all.length(number) * kBlock;
  }
  TORCHINIT_INLINE T* half_norms(int matrix, int64_t number) const {
    return triangle(matrix, number) + kBlock * kBlock;
  }
  TORCHINIT_INLINE T* heads(int matrix, int64_t number) const {
    return half_norms(matrix, number) + kBlock;
  }
  TORCHINIT_INLINE T* gram(int matrix, int64_t number, int64_t segment) const {
    return grams + matrix * grams_size +
           ((number - block) * all.segments(block) + segment) * (kBlock * kBlock);
  }
  // The element in a row and a column that are being formed.
  TORCHINIT_INLINE T* at(int matrix, int64_t row, int64_t number) const {
    T* const base = is_own ? own + matrix * own_size : static_cast<T*>(data[matrix]);
    return base + row * row_step + (number - column) * column_step;
  }
  // The first column that a block applies to; its own columns come first.
  TORCHINIT_INLINE int64_t met(int64_t number) const {
    return column > all.first(number) ? column : all.first(number);
  }
  TORCHINIT_INLINE int64_t later(int64_t number) const {
    const int64_t next = all.first(number) + all.count(number);
    return column > next ? column : next;
  }
  // P's segments and S: row k of column c, among the columns that the block applies to.
  TORCHINIT_INLINE int64_t width() const { return end_column - column; }
  TORCHINIT_INLINE T* partial(int matrix, int64_t segment, int64_t number) const {
    return partials + matrix * partials_size + (segment * width() + number - column) * kBlock;
  }
  TORCHINIT_INLINE T* solution(int matrix, int64_t number) const {
    return solved + matrix * solved_size + (number - column) * kBlock;
  }
};

struct NoShared {};

// The normals of a block's vectors: one Philox block for each thread, 32 vectors side by side.
template <class T, class Store>
struct DrawThread {
  using Shared = NoShared;
  static constexpr int threads = 256, blocks = 2;
  const DeviceWave<T>& work;
  const Place place;
  static constexpr int steps = 0;

  TORCHINIT_INLINE DrawThread(const DeviceWave<T>& wave, const Place& where, int)
      : work(wave), place(where) {}

  static constexpr int in_block = TORCHINIT_TARGET::block_size<Store>;
  // Philox blocks that a vector may touch, whatever its first index.
  static TORCHINIT_INLINE int64_t touched(int64_t length) {
    return (length + 2 * (in_block - 1)) / in_block;
  }

  TORCHINIT_INLINE void begin(Shared&) {
    using L = TORCHINIT_TARGET::ScalarLanes;
    const int64_t item = place.x * threads + place.thread, number = work.block + place.y;
    const int64_t r = item % kBlock, length = work.all.length(number) - r;
    if (r >= work.all.count(number)) return;
    const uint64_t row = static_cast<uint64_t>(work.all.first(number) + r);
    const uint64_t index = row * static_cast<uint64_t>(work.all.m) + row;
    const uint64_t end = index + static_cast<uint64_t>(length);
    const uint64_t philox = index / in_block + static_cast<uint64_t>(item / kBlock);
    if (philox * in_block >= end) return;
    T* const to = work.vectors(place.z, number) + r;
    if (item < kBlock)
      for (int64_t i = 0; i < r; ++i) to[i * kBlock] = T(0);
    T values[in_block];
    const TORCHINIT_TARGET::NormalSampler<T> normal{{T(0), T(1)}};
    const TORCHINIT_TARGET::RoundKeys keys = TORCHINIT_TARGET::round_keys(work.keys[place.z]);
    const TORCHINIT_TARGET::BlockRun<L> run(philox, keys);
    TORCHINIT_TARGET::fill_groups<L, TORCHINIT_TARGET::NormalSampler<T>, Store, false, 1>(
        normal, run, values);
    TORCHINIT_UNROLL
    for (int e = 0; e < in_block; ++e) {
      const uint64_t at = philox * in_block + static_cast<uint64_t>(e);
      if (at >= index && at < end) to[(r + static_cast<int64_t>(at - index)) * kBlock] = values[e];
    }
  }
  TORCHINIT_INLINE void step(Shared&, int) {}
  TORCHINIT_INLINE void end(Shared&) {}
};

// Turns normals into a Householder vector.
template <class T>
struct ReflectThread {
  static constexpr int threads = TORCHINIT_TARGET::kPartialSums, blocks = 8;
  struct Shared {
    double sums[threads];
    T scale;
  };
  static constexpr int steps = 1;
  const DeviceWave<T>& work;
  const Place place;
  int64_t number, r, length;
  T* x;

  TORCHINIT_INLINE ReflectThread(const DeviceWave<T>& wave, const Place& where, int)
      : work(wave), place(where), number(wave.block + where.y), r(where.x) {
    length = r < work.all.count(number) ? work.all.length(number) - r : 0;
    x = work.vectors(place.z, number) + r * kBlock + r;
  }
  TORCHINIT_INLINE void begin(Shared& shared) {
    double sum = 0;
    for (int64_t i = place.thread; i < length; i += threads)
      sum += static_cast<double>(x[i * kBlock]) * static_cast<double>(x[i * kBlock]);
    shared.sums[place.thread] = sum;
  }
  TORCHINIT_INLINE void step(Shared& shared, int) {
    if (place.thread || length == 0) return;
    const auto reflector =
        TORCHINIT_TARGET::make_reflector(x[0], TORCHINIT_TARGET::sum_pairwise(shared.sums));
    shared.scale = reflector.scale;
    work.half_norms(place.z, number)[r] = reflector.half_norm;
    work.heads(place.z, number)[r] = reflector.sign * work.gain;
  }
  TORCHINIT_INLINE void end(Shared& shared) {
    for (int64_t i = place.thread; i < length; i += threads)
      x[i * kBlock] = i == 0 ? T(1) : x[i * kBlock] * shared.scale;
  }
};

// A segment of V^T V.
template <class T>
struct GramThread : ProductThread<T, Tile<32, 32, 4, 4>, false, false> {
  using Z = Tile<32, 32, 4, 4>;
  using Base = ProductThread<T, Z, false, false>;
  static constexpr int threads = Z::threads, blocks = 8;
  T* to;

  static TORCHINIT_INLINE Operand<T> operand(const DeviceWave<T>& work, const Place& place) {
    const int64_t number = work.block + place.y;
    const T* const v = work.vectors(place.z, number) + place.x * kSegment * kBlock;
    return {v, 1, kBlock, work.all.count(number)};
  }
  static TORCHINIT_INLINE int rows(const DeviceWave<T>& work, const Place& place) {
    const int64_t left = work.all.length(work.block + place.y) - place.x * kSegment;
    return static_cast<int>(left < 0 ? 0 : left < kSegment ? left : kSegment);
  }
  TORCHINIT_INLINE GramThread(const DeviceWave<T>& work, const Place& place, int)
      : Base(operand(work, place), operand(work, place), 0, 0, rows(work, place), place.thread),
        to(work.gram(place.z, work.block + place.y, place.x)) {}
  TORCHINIT_INLINE void end(typename Base::Shared&) {
    TORCHINIT_UNROLL
    for (int i = 0; i < Z::R; ++i) TORCHINIT_UNROLL
    for (int j = 0; j < Z::C; ++j)
      to[Z::row(this->thread, i) * kBlock + Z::column(this->thread, j)] = this->sums[i][j];
  }
};

// Sums the segments, and replaces the upper triangle by minus its inverse.
template <class T>
struct TriangleThread {
  static constexpr int threads = 256, blocks = 4;
  struct Shared {
    T factors[kBlock][kBlock + 1], rows[kBlock][kBlock + 1];
  };
  const DeviceWave<T>& work;
  const Place place;
  const int64_t number;
  const int count;
  const int steps;

  TORCHINIT_INLINE TriangleThread(const DeviceWave<T>& wave, const Place& where, int)
      : work(wave),
        place(where),
        number(wave.block + where.y),
        count(wave.all.count(number)),
        steps(count + 1) {}
  TORCHINIT_INLINE void begin(Shared& shared) {
    for (int e = place.thread; e < kBlock * kBlock; e += threads) {
      T sum = T(0);
      for (int64_t segment = 0; segment < work.all.segments(number); ++segment)
        sum += work.gram(place.z, number, segment)[e];
      shared.rows[e / kBlock][e % kBlock] = sum;
    }
  }
  TORCHINIT_INLINE void step(Shared& shared, int step) {
    const T* const half_norms = work.half_norms(place.z, number);
    if (step == 0) {  // each row over its diagonal
      for (int e = place.thread; e < kBlock * kBlock; e += threads) {
        const int i = e / kBlock, j = e % kBlock;
        if (i < count) shared.factors[i][j] = shared.rows[i][j] * (-1 / half_norms[i]);
      }
    } else if (step == 1) {
      for (int e = place.thread; e < kBlock * kBlock; e += threads) {
        const int i = e / kBlock, j = e % kBlock;
        shared.rows[i][j] = i == j && i < count ? -1 / half_norms[i] : T(0);
      }
    } else {  // adds row j to those above it
      const int j = count + 1 - step;
      for (int e = place.thread; e < j * kBlock; e += threads) {
        const int i = e / kBlock, c = e % kBlock;
        if (c >= j)
          shared.rows[i][c] = TORCHINIT_TARGET::ScalarLanes::fma(
              shared.factors[i][j], shared.rows[j][c], shared.rows[i][c]);
      }
    }
  }
  TORCHINIT_INLINE void end(Shared& shared) {
    T* const to = work.triangle(place.z, number);
    for (int e = place.thread; e < kBlock * kBlock; e += threads)
      to[e] = shared.rows[e / kBlock][e % kBlock];
  }
};

// A segment of P = V^T Q for later columns; computed as Q^T V if columns are apart in memory.
template <class T, bool down>
struct ProjectThread
    : ProductThread<T, std::conditional_t<down, Tile<128, 32, 8, 4>, Tile<32, 128, 4, 8>>, down,
                    false> {
  using Z = std::conditional_t<down, Tile<128, 32, 8, 4>, Tile<32, 128, 4, 8>>;
  using Base = ProductThread<T, Z, down, false>;
  static constexpr int threads = Z::threads, blocks = sizeof(T) == 8 ? 2 : 4;
  static constexpr int columns = 128;
  const DeviceWave<T>& work;
  const Place place;
  const int number, count;

  // The segment's first nonzero row in these columns.
  static TORCHINIT_INLINE int64_t row(const DeviceWave<T>& work, const Place& place, int number) {
    return place.x ? place.x * kSegment : work.all.count(number);
  }
  static TORCHINIT_INLINE int rows(const DeviceWave<T>& work, const Place& place, int number) {
    const int64_t length = work.all.length(number), stop = (place.x + 1) * kSegment;
    return static_cast<int>((stop < length ? stop : length) - row(work, place, number));
  }
  static TORCHINIT_INLINE Operand<T> vectors(const DeviceWave<T>& work, const Place& place,
                                             int number) {
    const T* const v = work.vectors(place.z, number) + row(work, place, number) * kBlock;
    return {v, 1, kBlock, work.all.count(number)};
  }
  static TORCHINIT_INLINE Operand<T> matrix(const DeviceWave<T>& work, const Place& place,
                                            int number) {
    const int64_t later = work.later(number);
    const T* const x = work.at(place.z, work.all.first(number) + row(work, place, number), later);
    return {x, work.column_step, work.row_step, work.end_column - later};
  }
  TORCHINIT_INLINE ProjectThread(const DeviceWave<T>& wave, const Place& where, int block)
      : Base(down ? matrix(wave, where, block) : vectors(wave, where, block),
             down ? vectors(wave, where, block) : matrix(wave, where, block),
             down ? int64_t{where.y} * columns : 0, down ? 0 : int64_t{where.y} * columns,
             rows(wave, where, block), where.thread),
        work(wave),
        place(where),
        number(block),
        count(wave.all.count(block)) {}
  TORCHINIT_INLINE void end(typename Base::Shared&) {
    const int64_t first = work.later(number) + int64_t{place.y} * columns;
    TORCHINIT_UNROLL
    for (int i = 0; i < Z::R; ++i) TORCHINIT_UNROLL
    for (int j = 0; j < Z::C; ++j) {
      const int row = Z::row(this->thread, i), other = Z::column(this->thread, j);
      const int k = down ? other : row;
      const int64_t c = first + (down ? row : other);
      if (k < count && c < work.end_column) work.partial(place.z, place.x, c)[k] = this->sums[i][j];
    }
  }
};

// S = N P, 32 columns for each thread block.
template <class T>
struct SolveThread {
  static constexpr int threads = 256, blocks = 4;
  struct Shared {
    T triangle[kBlock][kBlock + 1], p[kBlock][kBlock + 1];
  };
  static constexpr int steps = 0;
  const DeviceWave<T>& work;
  const Place place;
  const int number, count;
  const int64_t first;

  TORCHINIT_INLINE SolveThread(const DeviceWave<T>& wave, const Place& where, int block)
      : work(wave),
        place(where),
        number(block),
        count(wave.all.count(block)),
        first(wave.met(block) + where.x * kBlock) {}
  TORCHINIT_INLINE void begin(Shared& shared) {
    const T* const n = work.triangle(place.z, number);
    const T *const v = work.vectors(place.z, number), *const heads = work.heads(place.z, number);
    for (int e = place.thread; e < kBlock * kBlock; e += threads) {
      const int i = e / kBlock, k = e % kBlock;
      shared.triangle[i][k] = n[e];
      const int64_t c = first + i, own = c - work.all.first(number);
      T sum = T(0);
      if (c >= work.end_column || k >= count) {
      } else if (own < count) {
        sum = v[own * kBlock + k] * heads[own];
      } else {
        for (int64_t segment = 0; segment < work.all.segments(number); ++segment)
          sum += work.partial(place.z, segment, c)[k];
      }
      shared.p[i][k] = sum;
    }
  }
  TORCHINIT_INLINE void step(Shared&, int) {}
  TORCHINIT_INLINE void end(Shared& shared) {
    for (int e = place.thread; e < kBlock * kBlock; e += threads) {
      const int i = e / kBlock, a = e % kBlock;
      if (first + i >= work.end_column || a >= count) continue;
      T sum = T(0);
      for (int b = a; b < count; ++b)
        sum = TORCHINIT_TARGET::ScalarLanes::fma(shared.triangle[a][b], shared.p[i][b], sum);
      work.solution(place.z, first + i)[a] = T(0) + sum;
    }
  }
};

// Q = Q + V S; computed as its transpose if columns are apart in memory.
template <class T, bool down>
struct UpdateThread : ProductThread<T, Tile<64, 64, 8, 4>, true, true> {
  using Z = Tile<64, 64, 8, 4>;
  using Base = ProductThread<T, Z, true, true>;
  static constexpr int threads = Z::threads, blocks = sizeof(T) == 8 ? 2 : 4;
  const DeviceWave<T>& work;
  const Place place;
  const int number;

  static TORCHINIT_INLINE Operand<T> vectors(const DeviceWave<T>& work, const Place& place,
                                             int number) {
    return {work.vectors(place.z, number), kBlock, 1, work.all.length(number)};
  }
  static TORCHINIT_INLINE Operand<T> solution(const DeviceWave<T>& work, const Place& place,
                                              int number) {
    const int64_t met = work.met(number);
    return {work.solution(place.z, met), kBlock, 1, work.end_column - met};
  }
  TORCHINIT_INLINE UpdateThread(const DeviceWave<T>& wave, const Place& where, int block)
      : Base(down ? solution(wave, where, block) : vectors(wave, where, block),
             down ? vectors(wave, where, block) : solution(wave, where, block),
             down ? int64_t{where.y} * Z::M : where.x * Z::M,
             down ? where.x * Z::N : int64_t{where.y} * Z::N, wave.all.count(block), where.thread),
        work(wave),
        place(where),
        number(block) {}
  TORCHINIT_INLINE void end(typename Base::Shared&) {
    const int64_t first = work.all.first(number), length = work.all.length(number);
    const int64_t met = work.met(number);
    const int count = work.all.count(number);
    const int64_t row0 = down ? place.x * Z::N : place.x * Z::M;
    const int64_t column0 = met + (down ? int64_t{place.y} * Z::M : int64_t{place.y} * Z::N);
    const T* const heads = work.heads(place.z, number);
    TORCHINIT_UNROLL
    for (int i = 0; i < Z::R; ++i) TORCHINIT_UNROLL
    for (int j = 0; j < Z::C; ++j) {
      const int a = Z::row(this->thread, i), b = Z::column(this->thread, j);
      const int64_t row = row0 + (down ? b : a), c = column0 + (down ? a : b);
      if (row >= length || c >= work.end_column) continue;
      T* const to = work.at(place.z, first + row, c);
      T before = T(0);
      if (c - first < count)  // the block's own
        before = row == c - first ? heads[row] : T(0);
      else if (row >= count)
        before = *to;
      *to = before + this->sums[i][j];
    }
  }
};

// Writes the formed columns to the tensor, times the factor, rounded to its dtype.
template <class T>
struct StoreThread {
  using Shared = NoShared;
  static constexpr int threads = 256, blocks = 4;
  static constexpr int steps = 0;
  const DeviceWave<T>& work;
  const Place place;

  TORCHINIT_INLINE StoreThread(const DeviceWave<T>& wave, const Place& where, int)
      : work(wave), place(where) {}
  TORCHINIT_INLINE void begin(Shared&) {
    const int64_t item = place.x * threads + place.thread;
    if (item >= work.rows.count * work.columns.count) return;
    int64_t row, column, row_place, column_place;
    // Neighbouring threads write neighbours in memory.
    const bool down = work.row_step == 1;
    const int64_t inner = down ? work.rows.count : work.columns.count;
    work.rows.locate(down ? item % inner : item / inner, row, row_place);
    work.columns.locate(down ? item / inner : item % inner, column, column_place);
    if (column < work.column || column >= work.end_column) return;
    const T value = *work.at(place.z, row, column) * work.factor;
    write(value, static_cast<unsigned char*>(work.data[place.z]) +
                     (row_place + column_place) * element_size(work.dtype));
  }
  TORCHINIT_INLINE void step(Shared&, int) {}
  TORCHINIT_INLINE void end(Shared&) {}

 private:
  TORCHINIT_INLINE void write(T value, unsigned char* to) const {
    using L = TORCHINIT_TARGET::ScalarLanes;
    if (element_size(work.dtype) == sizeof(T)) {
      *reinterpret_cast<T*>(to) = value;
      return;
    }
    const uint32_t bits =
        TORCHINIT_TARGET::round_to_dtype<L>(work.dtype, static_cast<float>(value));
    if (element_size(work.dtype) == 2)
      *reinterpret_cast<uint16_t*>(to) = static_cast<uint16_t>(bits);
    else
      *to = static_cast<unsigned char>(bits);
  }
};

}  // namespace torchinit::cuda
