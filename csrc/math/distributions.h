// Each distribution as a sampler: two vectors of random words in, two vectors of values out.
//
// first and second hold the words of neighbouring elements: x comes of first, y of second, or both
// of both (Box-Muller). A 32-bit word serves float32 and, rounded, the narrower formats; a 64-bit
// word serves float64. This is the only place where a distribution is defined.
#pragma once

#include "../plan.h"
#include "elementary.h"
#include "inverse_normal.h"

namespace torchinit::TORCHINIT_TARGET {

// Words to reals, exactly or with one rounding.

// [0, 1) in steps of 2^-24; steps of 2^-53.
template <class L>
TORCHINIT_INLINE typename L::f32 half_open_unit(typename L::u32 w) {
  return L::to_float(typename L::i32(w >> 8)) * 0x1p-24f;
}
template <class L>
TORCHINIT_INLINE typename L::f64 half_open_unit(typename L::u64 w) {
  return L::to_double(w >> 11) * 0x1p-53;
}

// (0, 1]: from 2^-32, and from 2^-54.
template <class L>
TORCHINIT_INLINE typename L::f32 open_unit(typename L::u32 w) {
  return (L::to_float(typename L::i32(w >> 1)) + 0.5f) * 0x1p-31f;
}
template <class L>
TORCHINIT_INLINE typename L::f64 open_unit(typename L::u64 w) {
  return (L::to_double(w >> 11) + 0.5) * 0x1p-53;
}

// [-1, 1]: the word as a signed integer.
template <class L>
TORCHINIT_INLINE typename L::f32 centred_unit(typename L::u32 w) {
  return L::to_float(typename L::i32(w)) * 0x1p-31f;
}
template <class L>
TORCHINIT_INLINE typename L::f64 centred_unit(typename L::u64 w) {
  return (L::to_double((w ^ 0x8000000000000000u) >> 11) - 0x1p52) * 0x1p-52;
}

// k + 1/2, k the distance of the word from the nearer end of its range: 31 bits, and 52.
template <class L>
TORCHINIT_INLINE typename L::f32 end_distance(typename L::u32 w) {
  const typename L::u32 upper_half = typename L::u32(typename L::i32(w) >> 31);
  return L::to_float(typename L::i32((w ^ upper_half) & 0x7fffffffu)) + 0.5f;
}
template <class L>
TORCHINIT_INLINE typename L::f64 end_distance(typename L::u64 w) {
  const typename L::u64 upper_half = 0u - (w >> 63);
  return L::to_double(((w ^ upper_half) & 0x7fffffffffffffffu) >> 11) + 0.5;
}

template <class L, class T, class F>
TORCHINIT_INLINE F clamp(F value, T min, T max) {
  return L::min(L::max(value, L::broadcast(min, value)), L::broadcast(max, value));
}

template <class L, class T, class F>
TORCHINIT_INLINE F apply(const Affine<T>& affine, F z) {
  const F value = L::fma(z, L::broadcast(affine.std, z), L::broadcast(affine.mean, z));
  return clamp<L>(value, affine.min, affine.max);
}

struct WordsSampler {
  template <class L, class W>
  TORCHINIT_INLINE void sample(W first, W second, W& x, W& y) const {
    x = first;
    y = second;
  }
};

template <class T>
struct UniformSampler {
  UniformParameters<T> p;

  template <class L, class W, class F>
  TORCHINIT_INLINE void sample(W first, W second, F& x, F& y) const {
    x = value<L, W, F>(first);
    y = value<L, W, F>(second);
  }

 private:
  template <class L, class W, class F>
  TORCHINIT_INLINE F value(W w) const {
    const F u = half_open_unit<L>(w);
    return clamp<L>(L::fma(u, L::broadcast(p.width, u), L::broadcast(p.low, u)), p.min, p.max);
  }
};

// Box and Muller 1958. The angle is taken about one of the four axes, which the two top bits of
// its word choose, so that sine and cosine need no further reduction.
template <class T>
struct NormalSampler {
  NormalParameters<T> p;

  template <class L, class W, class F>
  TORCHINIT_INLINE void sample(W first, W second, F& x, F& y) const {
    const F radius = L::sqrt(log<L>(open_unit<L>(first)) * T(-2));
    F s, c;
    sincos_eighth<L>(centred_unit<L>(second << 2), s, c);
    const F scaled = radius * p.std;
    const F mean = L::broadcast(p.mean, scaled);
    c = L::flip_sign(c, second);
    x = L::fma(L::select(second << 1, s, c), scaled, mean);
    y = L::fma(L::select(second << 1, c, s), scaled, mean);
  }
};

// Inverse CDF for bounds within three standard deviations of the mean.
struct TruncatedCentreSampler {
  TruncatedCentreParameters p;

  template <class L, class W, class F>
  TORCHINIT_INLINE void sample(W first, W second, F& x, F& y) const {
    x = value<L, W, F>(first);
    y = value<L, W, F>(second);
  }

 private:
  template <class L, class W, class F>
  TORCHINIT_INLINE F value(W w) const {
    const F t = L::to_float(typename L::i32(w ^ 0x80000000u));
    const F q = L::fma(t, L::broadcast(p.slope, t), L::broadcast(p.centre, t));
    return apply<L>(p.affine, inverse_normal_centre<L>(q));
  }
};

// Inverse CDF from the side of the nearer tail, whose probabilities keep their relative accuracy.
template <class T>
struct TruncatedSampler {
  TruncatedParameters<T> p;

  template <class L, class W, class F>
  TORCHINIT_INLINE void sample(W first, W second, F& x, F& y) const {
    x = value<L, W, F>(first, end_distance<L>(first));
    y = value<L, W, F>(second, end_distance<L>(second));
  }

  // The quantile at a distance from the end of the half that the top bit of the word names.
  template <class L, class W, class F>
  TORCHINIT_INLINE F value(W w, F distance) const {
    const F base = either<L>(w, p.half[1].base, p.half[0].base, distance);
    const F slope = either<L>(w, p.half[1].slope, p.half[0].slope, distance);
    const F flip = either<L>(w, p.half[1].flip, p.half[0].flip, distance);
    const F z = inverse_normal<L>(L::fma(distance, slope, base));
    return apply<L>(p.affine, L::flip_sign(z, W(L::bits(flip))));
  }

 private:
  template <class L, class W, class F>
  static TORCHINIT_INLINE F either(W w, T upper, T lower, F like) {
    return L::select(w, L::broadcast(upper, like), L::broadcast(lower, like));
  }
};

// The two samplers below serve bounds so narrow or remote that float32 has not the digits. They
// work one lane at a time, in double precision from 32-bit words too.

struct TruncatedWideSampler {
  TruncatedSampler<double> wide;

  template <class L, class W, class F>
  TORCHINIT_INLINE void sample(W first, W second, F& x, F& y) const {
    x = F(value<L>(first));
    y = F(value<L>(second));
  }

 private:
  template <class L>
  TORCHINIT_INLINE double value(uint32_t w) const {
    const uint32_t k = (w >> 31 ? ~w : w) & 0x7fffffffu;
    return wide.value<L>(static_cast<uint64_t>(w) << 32, L::to_double(uint64_t{k}) + 0.5);
  }
};

struct TruncatedTailSampler {
  TruncatedTailParameters p;

  template <class L, class W, class F>
  TORCHINIT_INLINE void sample(W first, W second, F& x, F& y) const {
    x = F(value<L>(first));
    y = F(value<L>(second));
  }

 private:
  template <class L>
  TORCHINIT_INLINE double value(uint32_t w) const {
    const uint32_t k = (w >> 31 ? ~w : w) & 0x7fffffffu;
    return value<L>(w >> 31, L::to_double(uint64_t{k}) + 0.5);
  }
  template <class L>
  TORCHINIT_INLINE double value(uint64_t w) const {
    return value<L>(static_cast<uint32_t>(w >> 63), end_distance<L>(w));
  }

  // Solves log(S(near + delta) / S(near)) = log(s) for delta, S the survivor function of N(0, 1):
  // near delta + delta^2 / 2 = -log(s) - log(1 + delta / near) + (correction of Mills' ratio).
  // The right side hardly depends on delta; each pass gains a factor near^2, about a thousand.
  template <class L>
  TORCHINIT_INLINE double value(uint32_t half, double distance) const {
    const double base = half ? p.base[1] : p.base[0];
    const double slope = half ? p.slope[1] : p.slope[0];
    const double energy = -log<L>(L::fma(distance, slope, base));
    double delta = 0;
    for (int pass = 0; pass < 6; ++pass) {
      const double x = p.near + delta;
      const double rest =
          energy - log<L>(x / p.near) + mills_correction<L>(1 / x / x) - p.near_correction;
      delta = 2 * rest / (p.near + L::sqrt(L::fma(p.near, p.near, 2 * rest)));
    }
    return clamp<L>(L::fma(p.std, delta, p.bound), p.min, p.max);
  }
};

}  // namespace torchinit::TORCHINIT_TARGET
