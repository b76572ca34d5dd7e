// The floating-point modes that the kernels rely on: round to nearest, subnormals kept.
//
// A program may have changed them (torch.set_flush_denormal does), which would change the bits.
#pragma once

#include <cstdint>

#include "platform.h"

#if TORCHINIT_X86
#include <xmmintrin.h>
#endif

namespace torchinit {

// Sets the default modes for the calling thread and restores the former ones at the end.
class FloatEnvironment {
 public:
  FloatEnvironment(const FloatEnvironment&) = delete;
  FloatEnvironment& operator=(const FloatEnvironment&) = delete;

#if TORCHINIT_X86
  FloatEnvironment() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~FloatEnvironment() { _mm_setcsr(saved_); }

 private:
  unsigned int saved_;
#elif TORCHINIT_ARM64
  FloatEnvironment() {
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved_));
    __asm__ volatile("msr fpcr, %0" : : "r"(uint64_t{0}));
  }
  ~FloatEnvironment() { __asm__ volatile("msr fpcr, %0" : : "r"(saved_)); }

 private:
  uint64_t saved_;
#else
  FloatEnvironment() = default;
#endif
};

}  // namespace torchinit
