// Logarithm, sine and cosine, and the inverse normal, in float32 and float64.
//
// Built only from IEEE add, multiply, fused multiply-add, divide and square root, in an explicit
// order, so every compiler and device gives the same bits. Coefficients, intervals and errors are
// in coefficients.h; docs/accuracy.md has the errors measured over all inputs.
#pragma once

#include <cstdint>

#include "../base/target.h"
#include "coefficients.h"

namespace torchinit::TORCHINIT_TARGET {

// The polynomial whose coefficients are `sum` and those of C from k on down, by Horner's rule.
template <class L, class C, int k, class F>
TORCHINIT_INLINE F horner_from(F x, F sum) {
  if constexpr (k < 0) {
    return sum;
  } else {
    constexpr auto coefficient = C::at(k);  // evaluated by the compiler: some are products
    return horner_from<L, C, k - 1>(x, F(L::fma(sum, x, L::broadcast(coefficient, x))));
  }
}

// A polynomial of coefficients.h.
template <class L, class C, class F>
TORCHINIT_INLINE F horner(F x) {
  constexpr auto leading = C::at(C::degree);
  return horner_from<L, C, C::degree - 1>(x, F(L::broadcast(leading, x)));
}

// The polynomial of log(1 + f) turned into that of -2 log(1 + f) in terms of g = -2 f: every
// coefficient is multiplied by a power of two, which is exact.
struct MinusTwoLogF32 {
  static constexpr int degree = coefficients::LogF32::degree;
  TORCHINIT_CONSTEXPR float at(int k) {
    float factor = -0.5f;
    for (int i = 0; i < k; ++i) factor *= -0.5f;
    return coefficients::LogF32::at(k) * factor;
  }
};
// The series of log(1 + f) in z = s^2, s = f / (2 + f), turned into that of -2 log(1 + f) in terms
// of (2 s)^2: every coefficient is multiplied by a power of two, which is exact.
struct MinusTwoLogF64 {
  static constexpr int degree = coefficients::LogF64::degree;
  TORCHINIT_CONSTEXPR double at(int k) {
    double factor = 0.25;
    for (int i = 0; i < k; ++i) factor *= 0.25;
    return coefficients::LogF64::at(k) * factor;
  }
};

// -2 log(x 2^-shift), x positive and normal. x 2^-shift = 2^e m with m in [2/3, 4/3), so that
// log(m) keeps its relative accuracy on both sides of one.
template <class L, int shift>
TORCHINIT_INLINE typename L::f32 minus_two_log(typename L::f32 x) {
  const typename L::i32 offset = L::bits(x) - (0x3f2aaaab + (shift << 23));
  const typename L::i32 e = offset >> 23;
  const typename L::f32 m = L::from_bits((offset & 0x7fffff) + 0x3f2aaaab);
  const typename L::f32 g = L::fma(m, L::broadcast(-2.0f, x), L::broadcast(2.0f, x));
  const typename L::f32 of_m = L::fma(g * g, horner<L, MinusTwoLogF32>(g), g);
  return L::fma(L::to_float(e), L::broadcast(-0x1.62e430p0f, x), of_m);
}

template <class L, int shift>
TORCHINIT_INLINE typename L::f64 minus_two_log(typename L::f64 x) {
  constexpr uint64_t two_thirds = 0x3fe5555555555555u, one = 0x3ff0000000000000u;
  // e + 1023 above the fraction: never negative, so logical shifts suffice.
  const typename L::u64 offset = L::bits(x) - (two_thirds - one + (uint64_t{shift} << 52));
  const typename L::f64 e =
      L::from_bits((offset >> 52) | 0x4330000000000000u) - 0x1.00000000003ffp52;
  const typename L::f64 m = L::from_bits((offset & 0xfffffffffffffu) + two_thirds);
  const typename L::f64 s = L::fma(m, L::broadcast(-2.0, x), L::broadcast(2.0, x)) / (m + 1.0);
  const typename L::f64 z = s * s;
  const typename L::f64 tail = s * z * horner<L, MinusTwoLogF64>(z);
  // -2 ln 2 in two parts: e times the first is exact.
  const typename L::f64 low = L::fma(e, L::broadcast(-0x1.ef35793c76730p-44, x), tail);
  const typename L::f64 of_m = L::fma(s, L::broadcast(2.0, x), low);
  return L::fma(e, L::broadcast(-0x1.62e42fefa3800p0, x), of_m);
}

// sin and cos of (pi / 4) x, x in [-1, 1].
template <class L>
TORCHINIT_INLINE void sincos_eighth(typename L::f32 x, typename L::f32& s, typename L::f32& c) {
  const typename L::f32 z = x * x;
  s = x * horner<L, coefficients::SinF32>(z);
  c = L::fma(z, horner<L, coefficients::CosF32>(z), L::broadcast(1.0f, x));
}

template <class L>
TORCHINIT_INLINE void sincos_eighth(typename L::f64 x, typename L::f64& s, typename L::f64& c) {
  const typename L::f64 z = x * x;
  s = x * horner<L, coefficients::SinF64>(z);
  c = L::fma(z, horner<L, coefficients::CosF64>(z), L::broadcast(1.0, x));
}

}  // namespace torchinit::TORCHINIT_TARGET
