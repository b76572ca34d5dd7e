// Rounding of float32 to the 16-bit formats: to nearest, ties to even, subnormals kept.
#pragma once

#include <cstdint>

#include "../platform.h"

namespace torchinit::TORCHINIT_TARGET {

// bfloat16 in the upper half of each 32-bit lane, the lower half left undefined. Not for NaN.
// (The processor's own conversion flushes subnormals, so it is of no use here.)
template <class U>
TORCHINIT_INLINE U round_to_bfloat16(U bits) {
  return bits + 0x7fffu + ((bits >> 16) & 1u);
}

// float16 from the bits of a float32. Not for NaN.
TORCHINIT_INLINE uint16_t round_to_float16(uint32_t bits) {
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // from 65520 on
  uint32_t rounded;
  if (magnitude < 0x38800000u) {  // below 2^-14: subnormal, in units of 2^-24
    if (magnitude < 0x33000000u) return static_cast<uint16_t>(sign);  // below 2^-25
    const uint32_t shift = 126u - (magnitude >> 23);
    const uint32_t significand = (magnitude & 0x7fffffu) | 0x800000u;
    const uint32_t half = 1u << (shift - 1);
    rounded = (significand + half - 1u + ((significand >> shift) & 1u)) >> shift;
  } else {
    rounded = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  return static_cast<uint16_t>(sign | rounded);
}

}  // namespace torchinit::TORCHINIT_TARGET
