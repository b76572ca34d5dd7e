// Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011), one block a lane.
//
// The counter of block b is (low half of b, high half of b, 0, 0); the key is the low and the high
// half of the 64-bit key. Words travel in 64-bit lanes, of which only the low half counts: the
// widening product wants them there, and no shuffle is needed before the words are used.
#pragma once

#include <cstdint>

#include "../platform.h"

namespace torchinit::TORCHINIT_TARGET {

// The key of each of the ten rounds (the key schedule adds a Weyl constant a round).
struct RoundKeys {
  uint32_t first[10], second[10];
};

TORCHINIT_INLINE RoundKeys round_keys(uint64_t key) {
  RoundKeys keys;
  uint32_t first = static_cast<uint32_t>(key), second = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    keys.first[round] = first;
    keys.second[round] = second;
    first += 0x9E3779B9u;
    second += 0xBB67AE85u;
  }
  return keys;
}

// One round on the counter (c0, c1, c2, c3).
template <class L>
TORCHINIT_INLINE void philox_round(typename L::u64 c[4], uint32_t first, uint32_t second) {
  const typename L::u64 p0 = L::multiply_wide(c[0], 0xD2511F53u);
  const typename L::u64 p1 = L::multiply_wide(c[2], 0xCD9E8D57u);
  c[0] = (p1 >> 32) ^ c[1] ^ first;
  c[2] = (p0 >> 32) ^ c[3] ^ second;
  c[1] = p1;
  c[3] = p0;
}

// Rounds first_round to 9.
template <class L, int first_round>
TORCHINIT_INLINE void philox_rounds(typename L::u64 c[4], const RoundKeys& keys) {
  TORCHINIT_UNROLL
  for (int round = first_round; round < 10; ++round)
    philox_round<L>(c, keys.first[round], keys.second[round]);
}

// Words of the blocks in the lanes of `block`; the high half of each lane is not defined.
template <class L>
TORCHINIT_INLINE void philox(typename L::u64 block, const RoundKeys& keys, typename L::u64 w[4]) {
  // The first round with c2 = c3 = 0 needs one product only.
  const typename L::u64 p0 = L::multiply_wide(block, 0xD2511F53u);
  w[0] = (block >> 32) ^ keys.first[0];
  w[1] = L::broadcast64(0);
  w[2] = (p0 >> 32) ^ keys.second[0];
  w[3] = p0;
  philox_rounds<L, 1>(w, keys);
}

}  // namespace torchinit::TORCHINIT_TARGET
