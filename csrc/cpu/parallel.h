// How many threads, and steps that they do together; helpers.h has the threads.
#pragma once

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "../base/platform.h"

namespace torchinit::cpu {

// Threads are not worth waking for less than this: elements drawn, or the same time.
constexpr int64_t kLeastPerThread = 1 << 14;

// Whether this process was forked from one that had loaded the library. The helpers are not there
// in such a process, and a lock of theirs may be held for ever.
bool is_forked();

// How many threads to use, of `threads` that are allowed, for so many elements or the same time.
inline int64_t useful_threads(int64_t elements, int threads) {
  if (is_forked()) return 1;
  return std::min<int64_t>(threads, (elements + kLeastPerThread - 1) / kLeastPerThread);
}

// Tells the processor that this thread waits.
inline void pause() {
#if TORCHINIT_X86
  __builtin_ia32_pause();
#elif TORCHINIT_ARM64
  __asm__ volatile("yield");
#endif
}

// A step of some work, in pieces that threads take as they become free. A thread goes on when all
// pieces are done; it waits for no thread that has taken none.
class Step {
 public:
  template <class Piece>
  void run(int64_t pieces, const Piece& piece) {
    for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < pieces;) {
      piece(i);
      done_.fetch_add(1, std::memory_order_release);
    }
    for (int spins = 0; done_.load(std::memory_order_acquire) < pieces; ++spins)
      if (spins < kSpins)
        pause();
      else
        sched_yield();  // the thread that is waited for may need this processor
  }

 private:
  static constexpr int kSpins = 2000;

  std::atomic<int64_t> next_{0}, done_{0};
};

}  // namespace torchinit::cpu
