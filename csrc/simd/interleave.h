// Two vectors as one: every operation is done on both before the next operation.
//
// The transforms are long chains of dependent operations, so a single group would leave the
// processor waiting for each result. Two interleaved groups keep it busy.
#pragma once

#include <cstdint>

#include "../base/target.h"

namespace torchinit::TORCHINIT_TARGET {

template <class V>
struct Pair {
  V a, b;

  Pair() = default;
  TORCHINIT_INLINE Pair(V first, V second) : a(first), b(second) {}
  // Reinterprets the bits of other vectors, like conversions of vector types.
  template <class U>
  TORCHINIT_INLINE explicit Pair(const Pair<U>& x) : a(V(x.a)), b(V(x.b)) {}
};

#define TORCHINIT_PAIR_OPERATOR(op)                                          \
  template <class V>                                                         \
  TORCHINIT_INLINE Pair<V> operator op(const Pair<V>& x, const Pair<V>& y) { \
    return {x.a op y.a, x.b op y.b};                                         \
  }                                                                          \
  template <class V, class Scalar>                                           \
  TORCHINIT_INLINE Pair<V> operator op(const Pair<V>& x, Scalar y) {         \
    return {x.a op y, x.b op y};                                             \
  }
TORCHINIT_PAIR_OPERATOR(+)
TORCHINIT_PAIR_OPERATOR(-)
TORCHINIT_PAIR_OPERATOR(*)
TORCHINIT_PAIR_OPERATOR(/)
TORCHINIT_PAIR_OPERATOR(&)
TORCHINIT_PAIR_OPERATOR(|)
TORCHINIT_PAIR_OPERATOR(^)
TORCHINIT_PAIR_OPERATOR(<<)
TORCHINIT_PAIR_OPERATOR(>>)
#undef TORCHINIT_PAIR_OPERATOR

template <class V>
TORCHINIT_INLINE Pair<V> operator-(const Pair<V>& x) {
  return {-x.a, -x.b};
}
template <class V>
TORCHINIT_INLINE Pair<V> operator~(const Pair<V>& x) {
  return {~x.a, ~x.b};
}

// The members that samplers use; see scalar.h for what each means.
template <class L>
struct InterleavedLanes {
  using u64 = Pair<typename L::u64>;
  using u32 = Pair<typename L::u32>;
  using i32 = Pair<typename L::i32>;
  using f32 = Pair<typename L::f32>;
  using f64 = Pair<typename L::f64>;

  template <class T, class V>
  static TORCHINIT_INLINE Pair<V> broadcast(T x, const Pair<V>& like) {
    const V all = L::broadcast(x, like.a);
    return {all, all};
  }
  static TORCHINIT_INLINE i32 bits(const f32& x) { return {L::bits(x.a), L::bits(x.b)}; }
  static TORCHINIT_INLINE u64 bits(const f64& x) { return {L::bits(x.a), L::bits(x.b)}; }
  static TORCHINIT_INLINE f32 from_bits(const u32& x) {
    return {L::from_bits(x.a), L::from_bits(x.b)};
  }
  static TORCHINIT_INLINE f32 from_bits(const i32& x) {
    return {L::from_bits(x.a), L::from_bits(x.b)};
  }
  static TORCHINIT_INLINE f64 from_bits(const u64& x) {
    return {L::from_bits(x.a), L::from_bits(x.b)};
  }
  static TORCHINIT_INLINE f32 to_float(const i32& x) {
    return {L::to_float(x.a), L::to_float(x.b)};
  }
  static TORCHINIT_INLINE f64 to_double(const u64& x) {
    return {L::to_double(x.a), L::to_double(x.b)};
  }

  template <class V>
  static TORCHINIT_INLINE Pair<V> fma(const Pair<V>& x, const Pair<V>& y, const Pair<V>& z) {
    return {L::fma(x.a, y.a, z.a), L::fma(x.b, y.b, z.b)};
  }
  template <class V>
  static TORCHINIT_INLINE Pair<V> sqrt(const Pair<V>& x) {
    return {L::sqrt(x.a), L::sqrt(x.b)};
  }
  template <class V>
  static TORCHINIT_INLINE Pair<V> min(const Pair<V>& x, const Pair<V>& y) {
    return {L::min(x.a, y.a), L::min(x.b, y.b)};
  }
  template <class V>
  static TORCHINIT_INLINE Pair<V> max(const Pair<V>& x, const Pair<V>& y) {
    return {L::max(x.a, y.a), L::max(x.b, y.b)};
  }
  template <class W, class V>
  static TORCHINIT_INLINE Pair<V> select(const Pair<W>& condition, const Pair<V>& x,
                                         const Pair<V>& y) {
    return {L::select(condition.a, x.a, y.a), L::select(condition.b, x.b, y.b)};
  }
  template <class V, class W>
  static TORCHINIT_INLINE Pair<V> flip_sign(const Pair<V>& x, const Pair<W>& word) {
    return {L::flip_sign(x.a, word.a), L::flip_sign(x.b, word.b)};
  }
  template <class W>
  static TORCHINIT_INLINE bool any(const Pair<W>& condition) {
    return L::any(condition.a | condition.b);
  }
};

}  // namespace torchinit::TORCHINIT_TARGET
