// Blocks of Householder vectors in host memory.
#pragma once

#include <cstdint>

#include "../job/plan.h"

namespace torchinit::cpu {

// The reflectors first, first + 1, ..., first + count - 1 of some matrices.
struct ReflectorBlock {
  Dtype dtype;  // Float32 or Float64
  const int64_t* keys;
  int64_t matrices;
  int64_t first, count;
  int64_t length;  // elements of a whole column; reflector k has length - k
  void* vectors;   // (matrices, count, length - first): reflector by reflector, zeros before each
  void* halves;    // of their squared norms: (matrices, count)
  void* signs;     // (matrices, count)
};

// Reflector k of a matrix comes of elements k * length + k to (k + 1) * length - 1 of the key's
// normal fill.
void fill_reflectors(const ReflectorBlock& block, int threads);

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
