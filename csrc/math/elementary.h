// Logarithm, sine and cosine, and the inverse normal, in float32 and float64.
//
// Built from IEEE add, multiply, fused multiply-add, divide and square root alone, in an order
// that is written out: every compiler and device gives the same bits. Coefficients, intervals and
// errors are in coefficients.h; docs/accuracy.md has the errors measured over all inputs.
#pragma once

#include "../platform.h"
#include "coefficients.h"

namespace torchinit::TORCHINIT_TARGET {

// A polynomial of coefficients.h by Horner's rule.
template <class L, class C, class F>
TORCHINIT_INLINE F horner(F x) {
  F sum = L::broadcast(C::at(C::degree), x);
  TORCHINIT_UNROLL
  for (int k = C::degree - 1; k >= 0; --k) sum = L::fma(sum, x, L::broadcast(C::at(k), x));
  return sum;
}

// log(x), x positive and normal. x = 2^e m with m in [2/3, 4/3), so that log(m) keeps its relative
// accuracy on both sides of one.
template <class L>
TORCHINIT_INLINE typename L::f32 log(typename L::f32 x) {
  const typename L::i32 bits = L::bits(x);
  const typename L::i32 e = (bits - 0x3f2aaaab) >> 23;
  const typename L::u32 m = typename L::u32(bits) - (typename L::u32(e) << 23);
  const typename L::f32 f = L::from_bits(m) - 1.0f;
  const typename L::f32 log_m = L::fma(f * f, horner<L, coefficients::LogF32>(f), f);
  return L::fma(L::to_float(e), L::broadcast(0x1.62e430p-1f, x), log_m);
}

template <class L>
TORCHINIT_INLINE typename L::f64 log(typename L::f64 x) {
  const typename L::u64 bits = L::bits(x);
  // The exponent plus 1023 in the upper twelve bits: never negative, so logical shifts will do.
  const typename L::u64 biased = bits - (0x3fe5555555555555u - 0x3ff0000000000000u);
  const typename L::u64 exponent = biased & 0xfff0000000000000u;
  const typename L::f64 k =
      L::from_bits((exponent >> 52) | 0x4330000000000000u) - 0x1.00000000003ffp52;
  const typename L::f64 f = L::from_bits(bits - exponent + 0x3ff0000000000000u) - 1.0;
  const typename L::f64 s = f / (f + 2.0);
  const typename L::f64 z = s * s;
  const typename L::f64 tail = s * z * horner<L, coefficients::LogF64>(z);
  // ln 2 in two parts: k times the first is exact.
  const typename L::f64 low = L::fma(k, L::broadcast(0x1.ef35793c76730p-45, x), tail);
  const typename L::f64 log_m = L::fma(s, L::broadcast(2.0, x), low);
  return L::fma(k, L::broadcast(0x1.62e42fefa3800p-1, x), log_m);
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
