// How values go to memory, and one step of a fill: a group of Philox blocks from key to store.
#pragma once

#include <cstdint>

#include "philox.h"
#include "rounding.h"

namespace torchinit::TORCHINIT_TARGET {

// How the pairs of values that a sampler makes go to memory.

struct StoreFloat32 {
  using Element = float;
  template <class L>
  using Value = typename L::f32;
  static constexpr int words = 1;  // random words an element

  template <class L, bool streaming>
  static TORCHINIT_INLINE void put(Element* to, typename L::f32 x, typename L::f32 y) {
    L::template store<streaming>(to, x, y);
  }
};

struct StoreFloat64 {
  using Element = double;
  template <class L>
  using Value = typename L::f64;
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
    const typename L::u32 low = round_to_bfloat16(typename L::u32(L::bits(x)));
    const typename L::u32 high = round_to_bfloat16(typename L::u32(L::bits(y)));
    L::template store_pairs<streaming>(to, (low >> 16) | (high & 0xffff0000u));
  }
};

struct StoreWords32 {
  using Element = uint32_t;
  template <class L>
  using Value = typename L::u32;
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
  static constexpr int words = 2;

  template <class L, bool streaming>
  static TORCHINIT_INLINE void put(Element* to, typename L::u64 x, typename L::u64 y) {
    L::template store<streaming>(to, x, y);
  }
};

// Elements of one group, and of one Philox block.
template <class L, class Store>
constexpr int group_size = 4 * L::blocks / Store::words;
template <class Store>
constexpr int block_size = 4 / Store::words;

// Some groups: the elements of the blocks from where the run stands.
template <class L, class Sampler, class Store, bool streaming, int groups>
TORCHINIT_INLINE void fill_groups(const Sampler& sampler, const BlockRun<L>& run,
                                  typename Store::Element* to) {
  typename L::u64 w[groups][4];
  run.template words<groups>(w);
  typename Store::template Value<L> x, y;
  TORCHINIT_UNROLL
  for (int i = 0; i < groups; ++i, to += group_size<L, Store>) {
    if constexpr (Store::words == 1) {
      typename L::u32 first[L::halves], second[L::halves];
      L::pack32(w[i], first, second);
      for (int half = 0; half < L::halves; ++half) {
        sampler.template sample<L>(first[half], second[half], x, y);
        Store::template put<L, streaming>(to + 2 * half, x, y);
      }
    } else {
      sampler.template sample<L>(L::pack64(w[i][0], w[i][1]), L::pack64(w[i][2], w[i][3]), x, y);
      Store::template put<L, streaming>(to, x, y);
    }
  }
}

}  // namespace torchinit::TORCHINIT_TARGET
