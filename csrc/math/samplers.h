// Each distribution as a sampler: two vectors of random words in, two vectors of values out.
//
// first and second hold the words of neighbouring elements: x depends on first and y on second, or
// both on both (Box-Muller). A 32-bit word makes a float32, which may be rounded to a narrower
// format; a 64-bit word makes a float64. Distributions are defined only here.
#pragma once

#include "elementary.h"
#include "inverse_normal.h"
#include "parameters.h"

namespace torchinit::TORCHINIT_TARGET {

// The 32-bit word as a signed integer, rounded to float32: [-2^31, 2^31].
template <class L>
TORCHINIT_INLINE typename L::f32 signed_word(typename L::u32 w) {
  return L::to_float(typename L::i32(w));
}
// The 53 upper bits of the 64-bit word as a signed integer: [-2^52, 2^52).
template <class L>
TORCHINIT_INLINE typename L::f64 signed_word(typename L::u64 w) {
  return L::to_double((w ^ 0x8000000000000000u) >> 11) - 0x1p52;
}

// The lower 31 bits of a 32-bit word, made odd so as never to be zero.
template <class L>
TORCHINIT_INLINE typename L::f32 odd_word(typename L::u32 w) {
  return L::to_float(typename L::i32((w & 0x7fffffffu) | 1u));
}
// The 52 bits below the top one of a 64-bit word's 53 upper ones, made odd so as never to be zero.
template <class L>
TORCHINIT_INLINE typename L::f64 odd_word(typename L::u64 w) {
  return L::to_double(((w >> 11) & 0xfffffffffffffu) | 1u);
}

// k + 1/2, k the distance of the signed 32-bit word from the nearer end of its range.
template <class L>
TORCHINIT_INLINE typename L::f32 end_distance(typename L::u32 w) {
  const typename L::u32 positive = ~typename L::u32(typename L::i32(w) >> 31);
  return L::to_float(typename L::i32((w ^ positive) & 0x7fffffffu)) + 0.5f;
}
// k + 1/2, k the distance of a 64-bit word's 53 upper bits, signed, from the nearer end of their
// range.
template <class L>
TORCHINIT_INLINE typename L::f64 end_distance(typename L::u64 w) {
  const typename L::u64 positive = (w >> 63) - 1u;
  return L::to_double(((w ^ positive) & 0x7fffffffffffffffu) >> 11) + 0.5;
}

// A min of zero is +0 and a max of zero -0 (job/plan.cpp), so all processors give zeros the same
// sign, whether or not their comparisons consider it.
template <class L, class T, class F>
TORCHINIT_INLINE F clamp(F value, T min, T max) {
  return L::min(L::max(value, L::broadcast(min, value)), L::broadcast(max, value));
}

template <class L, class T, class F>
TORCHINIT_INLINE F affine(const Affine<T>& p, F z) {
  const F value = L::fma(z, L::broadcast(p.scale, z), L::broadcast(p.origin, z));
  return clamp<L>(value, p.min, p.max);
}

// Samplers whose elements depend only on their own word.
template <class Value>
struct Independent {
  Value value;

  template <class L, class W, class F>
  TORCHINIT_INLINE void sample(W first, W second, F& x, F& y) const {
    x = F(value.template of<L>(first));
    y = F(value.template of<L>(second));
  }
};

// Makes a value of 64-bit words from 32-bit ones, for parameters that need more digits than float32
// has. One lane at a time.
template <class Value>
struct Widened {
  Value value;

  template <class L>
  TORCHINIT_INLINE float of(uint32_t w) const {
    const uint64_t middle = (static_cast<uint64_t>(w) << 32) | 0x80000000u;
    return static_cast<float>(value.template of<L>(middle));
  }
};

struct WordsValue {
  template <class L, class W>
  TORCHINIT_INLINE W of(W w) const {
    return w;
  }
};

// origin + s * scale, s the signed word; clamped if rounding could leave the interval.
template <class T, bool clamped>
struct UniformValue {
  Affine<T> p;

  template <class L, class W>
  TORCHINIT_INLINE auto of(W w) const {
    const auto s = signed_word<L>(w);
    if constexpr (clamped)
      return affine<L>(p, s);
    else
      return L::fma(s, L::broadcast(p.scale, s), L::broadcast(p.origin, s));
  }
};

// Box and Muller 1958. The top bit of the first word is a sign, its other bits are the radius. The
// top bit of the second word chooses between the axes, its other bits are the angle about the axis,
// so sine and cosine need no further reduction.
template <class T>
struct NormalSampler {
  NormalParameters<T> p;

  template <class L, class W, class F>
  TORCHINIT_INLINE void sample(W first, W second, F& x, F& y) const {
    constexpr int digits = sizeof(T) == 4 ? 31 : 52;
    const F radius = L::sqrt(minus_two_log<L, digits>(odd_word<L>(first))) * p.std;
    constexpr T to_unit = T(1) / (sizeof(T) == 4 ? T(0x1p31) : T(0x1p52));
    F s, c;
    sincos_eighth<L>(signed_word<L>(second << 1) * to_unit, s, c);
    c = L::flip_sign(c, first);
    const F mean = L::broadcast(p.mean, radius);
    x = L::fma(L::select(second, s, c), radius, mean);
    y = L::fma(L::select(second, c, s), radius, mean);
  }
};

// The plain normal kept within bounds, if rounding to the dtype could leave them, or if the
// parameters are so large that products of the plain normal would overflow.
template <class T>
struct ClampedNormalSampler {
  ClampedNormalParameters<T> p;

  template <class L, class W, class F>
  TORCHINIT_INLINE void sample(W first, W second, F& x, F& y) const {
    NormalSampler<T>{p.normal}.template sample<L>(first, second, x, y);
    x = clamp<L>(x * p.factor, p.min, p.max);
    y = clamp<L>(y * p.factor, p.min, p.max);
  }
};

// The truncated normal by inverse CDF, at (s + 1/2) 2^-32 + 1/2 of its mass, s the signed word.

// Bounds within `sigmas` (two or three) standard deviations of the mean.
template <int sigmas>
struct TruncatedCentreValue {
  TruncatedCentreParameters p;

  template <class L, class W>
  TORCHINIT_INLINE auto of(W w) const {
    const auto s = signed_word<L>(w);
    const auto q = L::fma(s, L::broadcast(p.slope, s), L::broadcast(p.centre, s));
    return affine<L>(p.affine, inverse_normal_centre<L, sigmas>(q));
  }
};

// Computed from the nearer tail, whose probabilities keep their relative accuracy.
template <class T>
struct TruncatedValue {
  TruncatedParameters<T> p;

  template <class L, class W>
  TORCHINIT_INLINE auto of(W w) const {
    const auto distance = end_distance<L>(w);
    const auto base = either<L>(w, p.half[0].base, p.half[1].base, distance);
    const auto slope = either<L>(w, p.half[0].slope, p.half[1].slope, distance);
    const auto flip = either<L>(w, p.half[0].flip, p.half[1].flip, distance);
    const auto z = inverse_normal<L>(L::fma(distance, slope, base));
    return affine<L>(p.affine, L::flip_sign(z, W(L::bits(flip))));
  }

 private:
  template <class L, class W, class F>
  static TORCHINIT_INLINE F either(W w, T lower, T upper, F like) {
    return L::select(w, L::broadcast(lower, like), L::broadcast(upper, like));
  }
};

// Beyond the range of a double's probabilities: with their logarithms, one lane at a time.
struct TruncatedTailValue {
  TruncatedTailParameters p;

  // Solves log(S(near + delta) / S(near)) = log(s) for delta, S the survivor function of N(0, 1):
  // near delta + delta^2 / 2 = -log(s) - log(1 + delta / near) + (correction of Mills' ratio).
  // The right side hardly depends on delta; each pass gains a factor near^2, about a thousand.
  template <class L>
  TORCHINIT_INLINE double of(uint64_t w) const {
    const bool lower = w >> 63;
    const double base = lower ? p.base[0] : p.base[1];
    const double slope = lower ? p.slope[0] : p.slope[1];
    const double twice_energy = minus_two_log<L, 0>(L::fma(end_distance<L>(w), slope, base));
    double delta = 0;
    for (int pass = 0; pass < 6; ++pass) {
      const double x = p.near + delta;
      const double correction = mills_correction<L>(1 / x / x) - p.near_correction;
      const double rest = twice_energy + minus_two_log<L, 0>(x / p.near) + 2 * correction;
      delta = rest / (p.near + L::sqrt(L::fma(p.near, p.near, rest)));
    }
    return clamp<L>(L::fma(p.std, delta, p.bound), p.min, p.max);
  }
};

}  // namespace torchinit::TORCHINIT_TARGET
