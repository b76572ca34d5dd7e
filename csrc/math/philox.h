// Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011), one block in each lane.
//
// The counter of block b is (low half of b, high half of b, 0, 0); the key is the low and the high
// half of the 64-bit key. Words are kept in the low halves of 64-bit lanes, where the widening
// product needs them, so no shuffle is needed before the words are used.
#pragma once

#include <cstdint>

#include "../base/target.h"

namespace torchinit::TORCHINIT_TARGET {

// The key of each of the ten rounds (the key schedule adds a Weyl constant every round).
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

// The multipliers of words 0 and 2.
constexpr uint32_t kFirst = 0xD2511F53u, kSecond = 0xCD9E8D57u;

// One round on the counter (c0, c1, c2, c3).
template <class L>
TORCHINIT_INLINE void philox_round(typename L::u64 c[4], uint32_t first, uint32_t second) {
  const typename L::u64 p0 = L::multiply_wide(c[0], kFirst);
  const typename L::u64 p1 = L::multiply_wide(c[2], kSecond);
  c[0] = (p1 >> 32) ^ c[1] ^ first;
  c[2] = (p0 >> 32) ^ c[3] ^ second;
  c[1] = p1;
  c[3] = p0;
}

// Some of the ten rounds, on several counters. The counters are interleaved, because each alone is
// one long chain of dependent instructions that would leave the processor waiting.
template <class L, int first_round, int end_round, int counters>
TORCHINIT_INLINE void philox_rounds(typename L::u64 c[counters][4], const RoundKeys& keys) {
  TORCHINIT_UNROLL
  for (int round = first_round; round < end_round; ++round) {
    TORCHINIT_UNROLL
    for (int i = 0; i < counters; ++i) philox_round<L>(c[i], keys.first[round], keys.second[round]);
  }
}

// The last round, with its words as pairs of 32-bit vectors. Upper halves are packed in place, so
// none has to be shifted down first.
template <class L>
TORCHINIT_INLINE void last_round(const typename L::u64 c[4], const RoundKeys& keys,
                                 typename L::u32 first[L::vectors],
                                 typename L::u32 second[L::vectors]) {
  const typename L::u64 p0 = L::multiply_wide(c[0], kFirst);
  const typename L::u64 p1 = L::multiply_wide(c[2], kSecond);
  L::pack_lower(p1, p0, second);
  typename L::u32 upper[L::vectors], other[L::vectors], key[L::vectors];
  L::pack_upper(p1, p0, upper);
  L::pack_lower(c[1], c[3], other);
  L::pack_lower(L::broadcast64(keys.first[9]), L::broadcast64(keys.second[9]), key);
  TORCHINIT_UNROLL
  for (int i = 0; i < L::vectors; ++i) first[i] = upper[i] ^ other[i] ^ key[i];
}

// The words of some groups after two rounds, 32 bits each: first has words 0 and 2 of the blocks,
// second words 1 and 3.
template <class L, int groups>
TORCHINIT_INLINE void other_rounds(typename L::u64 c[groups][4], const RoundKeys& keys,
                                   typename L::u32 first[groups * L::vectors],
                                   typename L::u32 second[groups * L::vectors]) {
  philox_rounds<L, 2, 9, groups>(c, keys);
  TORCHINIT_UNROLL
  for (int i = 0; i < groups; ++i)
    last_round<L>(c[i], keys, first + i * L::vectors, second + i * L::vectors);
}

// 64 bits each, the even word of a block below the odd one: first has words 0 and 1, second words 2
// and 3.
template <class L, int groups>
TORCHINIT_INLINE void other_rounds(typename L::u64 c[groups][4], const RoundKeys& keys,
                                   typename L::u64 first[groups], typename L::u64 second[groups]) {
  philox_rounds<L, 2, 10, groups>(c, keys);
  TORCHINIT_UNROLL
  for (int i = 0; i < groups; ++i) {
    first[i] = L::pack64(c[i][0], c[i][1]);
    second[i] = L::pack64(c[i][2], c[i][3]);
  }
}

// The part of the first two rounds that depends only on the upper half of block numbers.
template <class L>
class UpperHalf {
 public:
  TORCHINIT_INLINE UpperHalf(typename L::u64 blocks, const RoundKeys& keys) {
    // Round 0 makes the words (upper half ^ key, 0, ...); this is its first product in round 1.
    product_ = L::multiply_wide((blocks >> 32) ^ keys.first[0], kFirst);
    high_ = (product_ >> 32) ^ keys.second[1];
  }

  // The counters after two rounds, of kFirst times the lower halves.
  TORCHINIT_INLINE void two_rounds(typename L::u64 product, const RoundKeys& keys,
                                   typename L::u64 c[4]) const {
    const typename L::u64 p1 = L::multiply_wide((product >> 32) ^ keys.second[0], kSecond);
    c[0] = (p1 >> 32) ^ keys.first[1];
    c[1] = p1;
    c[2] = high_ ^ product;
    c[3] = product_;
  }

 private:
  typename L::u64 product_, high_;
};

// A run of groups of blocks: `together` consecutive groups, and as many again `stride` blocks
// later. While the upper half of the block number stays the same, the first two rounds cost one
// product instead of four: the others are kept, or grow by a constant.
template <class L, int together = 1, uint64_t stride = uint64_t{L::blocks}>
class BlockRun {
 public:
  // Starts at the group whose first block is given.
  TORCHINIT_INLINE BlockRun(uint64_t block, const RoundKeys& keys)
      : keys_(keys),
        product_(L::multiply_wide(blocks_from(block), kFirst)),
        upper_(blocks_from(block), keys) {}

  // The words of some groups from here on.
  template <int groups, class Word>
  TORCHINIT_INLINE void words(Word* first, Word* second) const {
    typename L::u64 c[groups][4];
    TORCHINIT_UNROLL
    for (int i = 0; i < groups; ++i) upper_.two_rounds(product_ + offset(i) * kFirst, keys_, c[i]);
    other_rounds<L, groups>(c, keys_, first, second);
  }

  // Advances by some groups, a multiple of `together`; all blocks from the first on must have the
  // same upper half.
  TORCHINIT_INLINE void advance(int groups) { product_ = product_ + offset(groups) * kFirst; }

  // How many groups from a block on can be in one run: at least one.
  static TORCHINIT_INLINE uint64_t length(uint64_t block) {
    const uint64_t groups = (0x100000000u - (block & 0xffffffffu)) / L::blocks;
    return groups ? groups : 1;
  }

 private:
  // The size of a group in blocks.
  static TORCHINIT_INLINE uint64_t offset(int group) {
    return static_cast<uint64_t>(group / together) * stride +
           static_cast<uint64_t>(group % together) * L::blocks;
  }

  static TORCHINIT_INLINE typename L::u64 blocks_from(uint64_t block) {
    return L::broadcast64(block) + L::block_offsets();
  }

  const RoundKeys& keys_;
  typename L::u64 product_;
  const UpperHalf<L> upper_;
};

// Groups of any blocks whose numbers have the same upper half.
template <class L>
class BlockList {
 public:
  TORCHINIT_INLINE BlockList(const uint64_t* blocks, const UpperHalf<L>& upper,
                             const RoundKeys& keys)
      : blocks_(blocks), upper_(upper), keys_(keys) {}

  template <int groups, class Word>
  TORCHINIT_INLINE void words(Word* first, Word* second) const {
    typename L::u64 c[groups][4];
    TORCHINIT_UNROLL
    for (int i = 0; i < groups; ++i)
      upper_.two_rounds(L::multiply_wide(L::load_blocks(blocks_ + i * L::blocks), kFirst), keys_,
                        c[i]);
    other_rounds<L, groups>(c, keys_, first, second);
  }

 private:
  const uint64_t* const blocks_;
  const UpperHalf<L>& upper_;
  const RoundKeys& keys_;
};

}  // namespace torchinit::TORCHINIT_TARGET
