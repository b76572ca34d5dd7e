// A block of Householder vectors to be drawn: which, by which keys, where.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace torchinit {

// The reflectors first, first + 1, ..., first + count - 1 of some matrices. Reflector k of a matrix
// comes of elements k * length + k to (k + 1) * length - 1 of the key's normal fill.
struct ReflectorBlock {
  Dtype dtype;  // Float32 or Float64
  const int64_t* keys;
  int64_t matrices;
  int64_t first, count;
  int64_t length;    // elements of a whole column; reflector k has length - k
  void* vectors;     // (matrices, count, length - first): reflector by reflector, zeros before each
  void* half_norms;  // half their squared norms: (matrices, count)
  void* signs;       // (matrices, count)
};

}  // namespace torchinit
