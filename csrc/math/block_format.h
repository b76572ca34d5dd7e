// Formats of low-precision weights with scales of blocks, as data.
#pragma once

#include <cstdint>

namespace torchinit {

enum class ScaleRule : int {
  PowerUp,     // E8M0, the exponent of the quotient rounded up: "rceil" of cuBLAS
  PowerDown,   // E8M0, the exponent of the largest magnitude less 8: "floor" of the OCP
  Ratio,       // float32, largest magnitude / 448, by way of the inverse
  RatioPower,  // the same as a power of two, rounded up: "ue8m0"
  TwoLevels,   // E4M3, in units of a scale of the whole tensor: NVFP4
};
constexpr int kScaleRules = 5;

// How scales are stored.
enum class ScaleDtype : int { E8M0, Float32, E4M3 };
constexpr int kScaleDtypes = 3;

// A format is data: the kernels know none by name.
struct BlockFormat {
  int64_t rows, columns;  // of a block; at the edges of a matrix blocks are cut off
  bool packed;            // values of E2M1, two in a byte, the even column low; else of E4M3
  ScaleRule rule;
  ScaleDtype scale_dtype;
};

// What a rule needs to know of the whole tensor. Only TwoLevels does: the units of E4M3 scales.
struct WholeScale {
  float encode_sixth = 1, decode = 1;
};

// largest: of all magnitudes of the tensor, or a bound.
inline WholeScale whole_scale(float largest) {
  constexpr float max = 0x1.fffffep127f;
  float encode = 2688.0f / largest;  // 448 * 6: the largest scale and the largest value
  if (!(encode < max)) encode = max;
  if (largest == 0 || encode == 0) encode = 1;
  return {encode * (1.0f / 6.0f), 1.0f / encode};
}

}  // namespace torchinit
