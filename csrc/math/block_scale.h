// Scales of blocks of low-precision weights: from a block's largest magnitude to the scale that is
// stored and the factor that its values are multiplied by before they are rounded.
//
// docs/streams.md (section 8) is the contract. Magnitudes are given as the bits of float32, which
// are in the order of the values.
#pragma once

#include <cstdint>

#include "../base/target.h"
#include "../simd/rounding.h"
#include "../simd/scalar.h"
#include "block_format.h"

namespace torchinit::TORCHINIT_TARGET {

struct BlockScale {
  float factor;     // of the values
  uint32_t stored;  // E8M0 or E4M3; of ratios, bits of float32
};

TORCHINIT_INLINE float float_of(uint32_t bits) { return ScalarLanes::from_bits(bits); }

// 2^(127 - e) for the code e of 2^(e - 127).
TORCHINIT_INLINE float inverse_power(uint32_t code) {
  return code == 254 ? 0x1p-127f : float_of((254u - code) << 23);
}

// The code of the power of two by which the largest magnitude becomes at most 448.
TORCHINIT_INLINE uint32_t power_up(uint32_t largest) {
  const uint32_t quotient = ScalarLanes::bits_of(float_of(largest) * (1.0f / 448.0f));
  const uint32_t exponent = quotient >> 23, fraction = quotient & 0x7fffffu;
  const bool up = exponent ? fraction != 0 : fraction > 0x400000u;
  return exponent + (up && exponent != 254 ? 1 : 0);
}

// Of E4M3 without a sign.
TORCHINIT_INLINE float from_float8(uint32_t code) {
  const uint32_t exponent = code >> 3, digits = code & 7u;
  return exponent ? float_of(((exponent + 120u) << 23) | (digits << 20))
                  : static_cast<float>(digits) * 0x1p-9f;
}

// The scale of a block from the bits of its largest magnitude, which is finite. Without branches,
// so that a loop over blocks becomes vectors.
template <ScaleRule rule>
TORCHINIT_INLINE BlockScale scale_of(uint32_t largest, const WholeScale& whole) {
  constexpr float max = 0x1.fffffep127f;
  if constexpr (rule == ScaleRule::PowerUp || rule == ScaleRule::RatioPower) {
    const bool is_one = rule == ScaleRule::RatioPower && largest == 0;
    const uint32_t code = is_one ? 127u : power_up(largest);
    return {inverse_power(code), code};
  } else if constexpr (rule == ScaleRule::PowerDown) {
    const uint32_t exponent = largest >> 23, code = exponent > 8 ? exponent - 8 : 0;
    return {inverse_power(code), code};
  } else if constexpr (rule == ScaleRule::Ratio) {
    const float quotient = 448.0f / (largest ? float_of(largest) : 448.0f);
    const float factor = quotient < max ? quotient : max;
    return {factor, ScalarLanes::bits_of(1.0f / factor)};
  } else {
    const float scaled = float_of(largest) * whole.encode_sixth;
    const uint32_t code = round_to_small<ScalarLanes, Float8E4M3>(scaled);
    const float inverse = 1.0f / (from_float8(code) * whole.decode);
    return {inverse < max ? inverse : max, code};
  }
}

// Calls visit.run<rule>().
TORCHINIT_ANY_SIDE
template <class Visitor>
TORCHINIT_INLINE void visit_rule(ScaleRule rule, Visitor& visit) {
  switch (rule) {
    case ScaleRule::PowerUp:
      return visit.template run<ScaleRule::PowerUp>();
    case ScaleRule::PowerDown:
      return visit.template run<ScaleRule::PowerDown>();
    case ScaleRule::Ratio:
      return visit.template run<ScaleRule::Ratio>();
    case ScaleRule::RatioPower:
      return visit.template run<ScaleRule::RatioPower>();
    case ScaleRule::TwoLevels:
      return visit.template run<ScaleRule::TwoLevels>();
  }
}

// The bits of a scale as float32 or as a byte.
TORCHINIT_INLINE uint32_t stored_scale(ScaleRule rule, ScaleDtype dtype, uint32_t stored) {
  if (dtype != ScaleDtype::Float32 || rule == ScaleRule::Ratio) return stored;
  return stored ? stored << 23 : 0x400000u;  // of a code; 2^-127 is subnormal
}

}  // namespace torchinit::TORCHINIT_TARGET
