// The one loop over threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "../base/float_environment.h"

namespace torchinit::cpu {

// Threads are not worth waking for less than this: elements drawn, or the same time.
constexpr int64_t kLeastPerThread = 1 << 14;

// Whether this process was forked from one that had loaded the library. OpenMP's threads are not
// there in such a process, and a parallel region would wait for them for ever.
bool is_forked();

// How many threads to use, of `threads` that are allowed, for so many elements or the same time.
inline int64_t useful_threads(int64_t elements, int threads) {
  if (is_forked()) return 1;
  return std::min<int64_t>(threads, (elements + kLeastPerThread - 1) / kLeastPerThread);
}

// Calls work(take) on every thread. take() returns the numbers from 0 on, each to one thread and
// rising on each thread; they are the caller's pieces of work, taken as threads become free, so
// that one that shares its processor with another program does not hold up the rest.
template <class Work>
void on_threads(int64_t threads, const Work& work) {
  std::atomic<int64_t> next{0};
  const auto take = [&] { return next.fetch_add(1, std::memory_order_relaxed); };
  if (threads <= 1) {
    const FloatEnvironment environment;
    work(take);
    return;
  }
#pragma omp parallel num_threads(static_cast<int>(threads))
  {
    const FloatEnvironment environment;
    work(take);
  }
}

}  // namespace torchinit::cpu
