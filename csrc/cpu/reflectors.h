// Householder vectors, and what is made of them, in host memory.
#pragma once

#include <cstdint>

#include "../job/reflector_block.h"

namespace torchinit::cpu {

// Draws a block on at most `threads` threads.
void fill_reflectors(const ReflectorBlock& block, int threads);

// The same, vectors as columns: (matrices, length - first, step), of which the first `count` of
// each row are written.
void fill_reflectors_side_by_side(const ReflectorBlock& block, int64_t step, int threads);

// Matrices (n, n), rows after rows: upper triangles become their inverses; zeros below.
void invert_triangles(Dtype dtype, int64_t matrices, int64_t n, void* data, int threads);

// Orthogonal matrices times a gain, (m, n) with m >= n, by all their reflectors one by one: for
// matrices so small that products of blocks cost more.
struct SmallMatrices {
  Dtype dtype;  // Float32 or Float64
  const int64_t* keys;
  int64_t matrices, m, n;
  double gain;
  void* const* data;                  // of each matrix
  int64_t row_stride, column_stride;  // in elements
};

void fill_small_orthogonal(const SmallMatrices& matrices, int threads);

}  // namespace torchinit::cpu
