// The element types that fills write, and their sizes.
#pragma once

#include "../base/platform.h"

namespace torchinit {

// Distribution::Words fills 32- and 64-bit integers; every other distribution fills floating point.
enum class Dtype : int {
  Float64,
  Float32,
  Float16,
  BFloat16,
  Int32,
  Int64,
  Float8E4M3,  // torch.float8_e4m3fn: no infinity
  Float8E5M2,
};

// In their order, as torch has them.
constexpr const char* kDtypeNames[] = {"FLOAT64", "FLOAT32", "FLOAT16",       "BFLOAT16",
                                       "INT32",   "INT64",   "FLOAT8_E4M3FN", "FLOAT8_E5M2"};
constexpr int kDtypes = sizeof kDtypeNames / sizeof *kDtypeNames;

TORCHINIT_INLINE constexpr bool is_integer(Dtype dtype) {
  return dtype == Dtype::Int32 || dtype == Dtype::Int64;
}

TORCHINIT_INLINE constexpr int element_size(Dtype dtype) {
  return dtype == Dtype::Float64 || dtype == Dtype::Int64      ? 8
         : dtype == Dtype::Float32 || dtype == Dtype::Int32    ? 4
         : dtype == Dtype::Float16 || dtype == Dtype::BFloat16 ? 2
                                                               : 1;
}

}  // namespace torchinit
