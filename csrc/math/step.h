// Stores of values to memory, and one step of a fill: a group of Philox blocks from key to store.
#pragma once

#include <cstdint>

#include "../simd/interleave.h"
#include "../simd/rounding.h"
#include "philox.h"

namespace torchinit::TORCHINIT_TARGET {

// Stores of the pairs of values that a sampler makes.

struct StoreFloat32 {
  using Element = float;
  template <class L>
  using Value = typename L::f32;
  template <class L>
  using Word = typename L::u32;
  static constexpr int words = 1;  // random words for each element

  template <class L, bool streaming>
  static TORCHINIT_INLINE void put(Element* to, typename L::f32 x, typename L::f32 y) {
    L::template store<streaming>(to, x, y);
  }
};

struct StoreFloat64 {
  using Element = double;
  template <class L>
  using Value = typename L::f64;
  template <class L>
  using Word = typename L::u64;
  static constexpr int words = 2;

  template <class L, bool streaming>
  static TORCHINIT_INLINE void put(Element* to, typename L::f64 x, typename L::f64 y) {
    L::template store<streaming>(to, x, y);
  }
};

struct StoreFloat16 : StoreFloat32 {
  using Element = uint16_t;

  template <class L, bool streaming>
  static TORCHINIT_INLINE void put(Element* to, typename L::f32 x, typename L::f32 y) {
    L::template store_float16<streaming>(to, x, y);
  }
};

struct StoreBFloat16 : StoreFloat32 {
  using Element = uint16_t;

  template <class L, bool streaming>
  static TORCHINIT_INLINE void put(Element* to, typename L::f32 x, typename L::f32 y) {
    L::template store_pairs<streaming>(to, bfloat16_pairs<L>(x, y));
  }
};

// bfloat16 by the processor's own conversion, for values that are never subnormal.
struct StoreNormalBFloat16 : StoreBFloat16 {
  template <class L, bool streaming>
  static TORCHINIT_INLINE void put(Element* to, typename L::f32 x, typename L::f32 y) {
    L::template store_bfloat16<streaming>(to, x, y);
  }
};

// 8-bit formats: larger values become the largest finite one.
template <class Format>
struct StoreFloat8 : StoreFloat32 {
  using Element = uint8_t;

  template <class L, bool streaming>
  static TORCHINIT_INLINE void put(Element* to, typename L::f32 x, typename L::f32 y) {
    L::template store_byte_pairs<streaming>(to, float8_pairs<L, Format>(x, y));
  }
};

struct StoreWords32 {
  using Element = uint32_t;
  template <class L>
  using Value = typename L::u32;
  template <class L>
  using Word = typename L::u32;
  static constexpr int words = 1;

  template <class L, bool streaming>
  static TORCHINIT_INLINE void put(Element* to, typename L::u32 x, typename L::u32 y) {
    L::template store<streaming>(to, x, y);
  }
};

struct StoreWords64 {
  using Element = uint64_t;
  template <class L>
  using Value = typename L::u64;
  template <class L>
  using Word = typename L::u64;
  static constexpr int words = 2;

  template <class L, bool streaming>
  static TORCHINIT_INLINE void put(Element* to, typename L::u64 x, typename L::u64 y) {
    L::template store<streaming>(to, x, y);
  }
};

// Elements made from the L::blocks Philox blocks of one group.
template <class L, class Store>
constexpr int group_size = 4 * L::blocks / Store::words;
// Elements made from one Philox block.
template <class Store>
constexpr int block_size = 4 / Store::words;

// One step: fills the elements of some groups of blocks, from the run's position on.
template <class L, class Sampler, class Store, bool streaming, int groups, class Run>
TORCHINIT_INLINE void fill_groups(const Sampler& sampler, const Run& run,
                                  typename Store::Element* to) {
  constexpr int vectors = Store::words == 1 ? L::vectors : 1;
  constexpr int size = group_size<L, Store> / vectors;
  typename Store::template Word<L> first[groups * vectors], second[groups * vectors];
  run.template words<groups>(first, second);
  if constexpr (groups % 2 == 0 && L::vectors == 1) {
    using P = InterleavedLanes<L>;
    TORCHINIT_UNROLL
    for (int i = 0; i < groups; i += 2) {
      typename Store::template Value<P> x, y;
      sampler.template sample<P>(Pair(first[i], first[i + 1]), Pair(second[i], second[i + 1]), x,
                                 y);
      Store::template put<L, streaming>(to + i * size, x.a, y.a);
      Store::template put<L, streaming>(to + (i + 1) * size, x.b, y.b);
    }
  } else {
    TORCHINIT_UNROLL
    for (int i = 0; i < groups * vectors; ++i) {
      typename Store::template Value<L> x, y;
      sampler.template sample<L>(first[i], second[i], x, y);
      Store::template put<L, streaming>(to + i * size, x, y);
    }
  }
}

}  // namespace torchinit::TORCHINIT_TARGET
