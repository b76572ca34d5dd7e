// Transposes squares of rows of 16 bytes in registers, on every processor.
#pragma once

#include <cstdint>

#include "../base/target.h"

namespace torchinit::TORCHINIT_TARGET {

template <class T>
struct Square {
  static constexpr int size = 16 / sizeof(T);
  typedef T Row __attribute__((vector_size(16)));
};

// Elements of two rows, numbered across both.
#if TORCHINIT_CLANG
#define TORCHINIT_PICK4(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#define TORCHINIT_PICK2(a, b, i, j) __builtin_shufflevector(a, b, i, j)
#else
typedef int32_t Order4 __attribute__((vector_size(16)));
typedef int64_t Order2 __attribute__((vector_size(16)));
#define TORCHINIT_PICK4(a, b, i, j, k, l) __builtin_shuffle(a, b, Order4{i, j, k, l})
#define TORCHINIT_PICK2(a, b, i, j) __builtin_shuffle(a, b, Order2{i, j})
#endif

TORCHINIT_INLINE void transpose(Square<float>::Row (&rows)[4]) {
  const auto a = TORCHINIT_PICK4(rows[0], rows[1], 0, 4, 1, 5);
  const auto b = TORCHINIT_PICK4(rows[0], rows[1], 2, 6, 3, 7);
  const auto c = TORCHINIT_PICK4(rows[2], rows[3], 0, 4, 1, 5);
  const auto d = TORCHINIT_PICK4(rows[2], rows[3], 2, 6, 3, 7);
  rows[0] = TORCHINIT_PICK4(a, c, 0, 1, 4, 5);
  rows[1] = TORCHINIT_PICK4(a, c, 2, 3, 6, 7);
  rows[2] = TORCHINIT_PICK4(b, d, 0, 1, 4, 5);
  rows[3] = TORCHINIT_PICK4(b, d, 2, 3, 6, 7);
}

TORCHINIT_INLINE void transpose(Square<double>::Row (&rows)[2]) {
  const auto first = TORCHINIT_PICK2(rows[0], rows[1], 0, 2);
  rows[1] = TORCHINIT_PICK2(rows[0], rows[1], 1, 3);
  rows[0] = first;
}

#undef TORCHINIT_PICK4
#undef TORCHINIT_PICK2

}  // namespace torchinit::TORCHINIT_TARGET
