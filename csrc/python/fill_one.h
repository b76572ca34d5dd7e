// One fill in host memory; releases the interpreter lock if that is worthwhile.
#pragma once

#include "../cpu/fill.h"
#include "read_jobs.h"

namespace torchinit {

// Fills smaller than this keep the interpreter lock: taking it again costs more than the fill.
constexpr int64_t kHoldLock = 1 << 15;

inline void fill_one(const Draw& draw, int64_t dtype, int64_t key, uintptr_t address,
                     const Box& box, int threads) {
  const Plan plan = plan_of(draw, dtype);
  void* const to = reinterpret_cast<void*>(address);
  if (box.count < kHoldLock) {
    cpu::fill(plan, static_cast<uint64_t>(key), box, to, threads);
  } else {
    const WithoutLock released;
    cpu::fill(plan, static_cast<uint64_t>(key), box, to, threads);
  }
}

}  // namespace torchinit
