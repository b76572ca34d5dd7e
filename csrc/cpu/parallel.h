// How many threads, and steps that they do together; helpers.h has the threads.
#pragma once

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "../base/platform.h"

namespace torchinit::cpu {

// Waking threads is not worthwhile for less than this many elements drawn, or the same time.
constexpr int64_t kLeastPerThread = 1 << 14;
// Smaller fills run on the caller's thread: they are done before another has begun.
constexpr int64_t kLeastShared = 2 * kLeastPerThread;

// Whether this process was forked from one that had loaded the library. The helpers do not exist in
// the child, and a lock of theirs may be held forever.
bool is_forked();

// How many of the allowed `threads` to use for a number of elements, or for the same time.
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

// A step of some work, in pieces that threads take as they become free. A thread continues when all
// pieces are done; it never waits for a thread that has taken no piece.
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
        sched_yield();  // the thread we wait for may need this processor
  }

 private:
  static constexpr int kSpins = 2000;

  std::atomic<int64_t> next_{0}, done_{0};
};

}  // namespace torchinit::cpu
