// Phi^-1, the quantile function of the standard normal distribution.
//
// float32: our own rational functions, the centre as far as three standard deviations without a
// logarithm. float64: Wichura 1988, Algorithm AS 241 (PPND16).
#pragma once

#include "elementary.h"

namespace torchinit::TORCHINIT_TARGET {

template <class L, class P, class Q, class F>
TORCHINIT_INLINE F rational(F x) {
  return horner<L, P>(x) / horner<L, Q>(x);
}

// Phi^-1(1/2 + q), |q| <= Phi(sigmas) - 1/2, sigmas two or three. The variable 1/4 - q^2 keeps its
// digits towards the tails, and the rational function is only a correction of 3 q, so its rounding
// hardly matters.
template <class L, int sigmas>
TORCHINIT_INLINE typename L::f32 inverse_normal_centre(typename L::f32 q) {
  using namespace coefficients;
  static_assert(sigmas == 2 || sigmas == 3);
  const typename L::f32 d = L::fma(-q, q, L::broadcast(0.25f, q));
  typename L::f32 ratio;
  if constexpr (sigmas == 2)
    ratio = rational<L, InverseNormalWithin2F32P, InverseNormalWithin2F32Q>(d);
  else
    ratio = rational<L, InverseNormalWithin3F32P, InverseNormalWithin3F32Q>(d);
  return L::fma(q, L::broadcast(3.0f, q), q * ratio);
}

// Phi^-1(p) for p from 1e-38 to Phi(3).
template <class L>
TORCHINIT_INLINE typename L::f32 inverse_normal(typename L::f32 p) {
  using namespace coefficients;
  const typename L::f32 centre = inverse_normal_centre<L, 3>(p - 0.5f);
  const typename L::u32 tail = typename L::u32(L::bits(p - 0x1.61e2p-10f));  // Phi(-3) = 0.00135
  if (!L::any(tail)) return centre;  // the same bits, faster
  const typename L::f32 r = L::sqrt(minus_two_log<L, 0>(p) * 0.5f);
  const typename L::f32 correction = rational<L, InverseNormalTailF32P, InverseNormalTailF32Q>(r);
  return L::select(tail, -L::fma(r, L::broadcast(1.5f, r), correction), centre);
}

// Phi^-1(p) for p from 1e-308 to 0.925.
template <class L>
TORCHINIT_INLINE typename L::f64 inverse_normal(typename L::f64 p) {
  using namespace coefficients;
  const typename L::f64 q = p - 0.5;
  const typename L::f64 d = L::fma(-q, q, L::broadcast(0.180625, q));
  const typename L::f64 centre =
      q * horner<L, InverseNormalCentreF64P>(d) / horner<L, InverseNormalCentreF64Q>(d);
  const typename L::u64 tail = L::bits(d);  // negative beyond |q| = 0.425
  if (!L::any(tail)) return centre;
  const typename L::f64 r = L::sqrt(minus_two_log<L, 0>(p) * 0.5);
  const typename L::f64 far = r - 5.0;
  const typename L::f64 middle =
      rational<L, InverseNormalMiddleF64P, InverseNormalMiddleF64Q>(r - 1.6);
  const typename L::f64 remote = rational<L, InverseNormalFarF64P, InverseNormalFarF64Q>(far);
  return L::select(tail, -L::select(L::bits(far), middle, remote), centre);
}

// log(x M(x)) for x >= 30, with y = 1 / x^2: M(x) = S(x) / phi(x), Mills' ratio, is
// (1 - y + 3 y^2 - 15 y^3 + ...) / x. The terms left out are below 2e-10.
template <class L, class F>
TORCHINIT_INLINE F mills_correction(F y) {
  const F cubic = L::fma(y, L::broadcast(-37.0 / 3, y), L::broadcast(2.5, y));
  return y * L::fma(y, cubic, L::broadcast(-1.0, y));
}

}  // namespace torchinit::TORCHINIT_TARGET
