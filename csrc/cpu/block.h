// A block of Householder reflectors, and its application to a panel of columns.
#pragma once

#include <cstdint>
#include <cstring>

#include "../job/orthogonal_job.h"
#include "../math/reflector.h"
#include "kernels.h"

namespace torchinit::cpu {

// H_1 ... H_b = I + V N V^T, as panels (docs/streams.md, section 5).
template <class T>
struct Block {
  T* vectors;   // V: (length, kBlock), column r is reflector r; memory for a multiple of 4 rows
  T* triangle;  // N: (kBlock, kBlock)
  T* heads;     // (kBlock): the factors of the identity's columns, then zeros

  // Elements of memory for all three.
  static int64_t size(int64_t length) {
    return round_up(length, 4) * kBlock + kBlock * kBlock + kBlock;
  }
  static Block at(T* memory, int64_t length) {
    T* const triangle = memory + round_up(length, 4) * kBlock;
    return {memory, triangle, triangle + kBlock * kBlock};
  }
};

// Turns normals into vectors.
template <class T>
struct Norms {
  alignas(64) T scales[kBlock] = {};
  T half_norms[kBlock] = {};

  void set(int r, const TORCHINIT_TARGET::Reflector<T>& reflector, T gain, T* heads) {
    scales[r] = reflector.scale;
    half_norms[r] = reflector.half_norm;
    heads[r] = reflector.sign * gain;
  }
};

// Makes rows `first` to `end` - 1 of V. normals: (kBlock, stride), one row a reflector, the columns
// for these rows; rows without a reflector, and elements past the end, become zeros. vectors:
// points to row `first`.
template <class T>
void make_vectors(const BlockKernels<T>& kernels, T* normals, int64_t stride, int64_t first,
                  int64_t end, int count, const Norms<T>& norms, T* vectors) {
  const int64_t rows = end - first, padded = round_up(rows, 4);
  for (int r = count; r < kBlock; ++r)
    std::memset(normals + r * stride, 0, static_cast<size_t>(padded) * sizeof(T));
  if (rows < padded)
    for (int r = 0; r < count; ++r)
      std::memset(normals + r * stride + rows, 0, static_cast<size_t>(padded - rows) * sizeof(T));
  kernels.turn(normals, stride, vectors, kBlock, kBlock, padded, norms.scales);
  for (int64_t i = first; i < end && i < count; ++i) {
    T* const row = vectors + (i - first) * kBlock;
    row[i] = 1;
    for (int64_t r = i + 1; r < kBlock; ++r) row[r] = 0;
  }
}

// C = A^T B, over rows `begin` to `end` - 1 of both; earlier rows are zero.
template <class T>
void multiply_transposed(const BlockKernels<T>& kernels, const T* a, const T* b, T* c, int rows,
                         int columns, int64_t begin, int64_t end) {
  std::memset(c, 0, sizeof(T) * kBlock * kBlock);
  for (int64_t stop; begin < end; begin = stop) {
    stop = std::min(end, (begin / kSegment + 1) * kSegment);
    kernels.add_transposed(a + begin * kBlock, b + begin * kBlock, c, rows, columns, stop - begin);
  }
}

// Turns V^T V, above its diagonal, into N.
template <class T>
void make_triangle(const BlockKernels<T>& kernels, int count, const Norms<T>& norms, T* triangle) {
  for (int r = 0; r < count; ++r) triangle[r * kBlock + r] = norms.half_norms[r];
  kernels.invert(triangle, count);
}

// S = N P, several rows together, without the zeros before the first of them.
template <class T>
void multiply_triangle(const BlockKernels<T>& kernels, const T* triangle, const T* p, T* s,
                       int count, int columns) {
  constexpr int some = kBlock / 2;
  for (int i = 0; i < count; i += some)
    kernels.multiply(false, triangle + i * kBlock + i, p + i * kBlock, s + i * kBlock,
                     std::min(some, count - i), columns, count - i);
}

// normals: (kBlock, stride), row r has a vector's normals from its element r on; overwritten.
template <class T>
void make_block(const BlockKernels<T>& kernels, T* normals, int64_t stride, int64_t length,
                int count, T gain, const Block<T>& block) {
  Norms<T> norms;
  std::memset(block.heads, 0, sizeof(T) * kBlock);
  for (int r = 0; r < count; ++r) {
    double sums[TORCHINIT_TARGET::kPartialSums] = {};
    const T* const x = normals + r * stride + r;
    const double sum = kernels.square_sum(x, length - r, sums);
    norms.set(r, TORCHINIT_TARGET::make_reflector(x[0], sum), gain, block.heads);
  }
  make_vectors(kernels, normals, stride, 0, length, count, norms, block.vectors);
  multiply_transposed(kernels, block.vectors, block.vectors, block.triangle, count, count, 0,
                      length);
  make_triangle(kernels, count, norms, block.triangle);
}

// Starts the block's own columns as the identity's times the heads: writes their first rows, and
// V^T times them.
template <class T>
void begin_columns(const BlockKernels<T>& kernels, const T* vectors, const T* heads, int count,
                   T* x, T* p) {
  std::memset(x, 0, sizeof(T) * static_cast<size_t>(count * kBlock));
  for (int i = 0; i < count; ++i) x[i * kBlock + i] = heads[i];
  if (count < kBlock) std::memset(p, 0, sizeof(T) * kBlock * kBlock);
  kernels.turn(vectors, kBlock, p, kBlock, round_up(count, 4), kBlock, heads);
}

// Multiplies a panel of columns, from the block's first row on, by the block. own: the columns are
// the block's own; others are zero in the block's own rows.
template <class T>
void apply_block(const BlockKernels<T>& kernels, const Block<T>& block, int64_t length, int count,
                 int columns, bool own, T* x) {
  alignas(64) T p[kBlock * kBlock], s[kBlock * kBlock];
  const T* const v = block.vectors;
  if (own)
    begin_columns(kernels, v, block.heads, count, x, p);
  else
    multiply_transposed(kernels, v, x, p, count, columns, count, length);
  multiply_triangle(kernels, block.triangle, p, s, count, columns);
  kernels.multiply(own, v, s, x, count, columns, count);
  kernels.multiply(!own, v + count * kBlock, s, x + count * kBlock, length - count, columns, count);
}

}  // namespace torchinit::cpu
