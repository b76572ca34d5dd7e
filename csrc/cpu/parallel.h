// Loops over threads.
#pragma once

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "../base/float_environment.h"
#include "../base/platform.h"

// The call that GCC generates for "#pragma omp parallel", which the OpenMP runtimes of GCC, LLVM
// and Intel all provide. With any compiler, the runtime that torch has loaded is used: GCC's
// runtime lacks Clang's own calls, and linking a runtime would bring a second one into the process.
// Null if torch has loaded none.
extern "C" __attribute__((weak, visibility("default"))) void GOMP_parallel(void (*function)(void*),
                                                                           void* data,
                                                                           unsigned int threads,
                                                                           unsigned int flags);

namespace torchinit::cpu {

inline bool has_openmp() { return GOMP_parallel != nullptr; }

// Waking threads is not worthwhile for less than this many elements drawn, or the same time.
constexpr int64_t kLeastPerThread = 1 << 14;

// Whether this process was forked from one that had loaded the library. OpenMP's threads do not
// exist in the child, and a parallel region would wait for them forever.
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

// Calls work(take) on every thread, or only on the caller's without OpenMP. take() returns the
// numbers from 0 on, each to one thread, and increasing on each thread. They number the caller's
// pieces of work. Threads take them as they become free, so a thread that shares its processor with
// another program does not delay the rest.
template <class Work>
void on_threads(int64_t threads, const Work& work) {
  std::atomic<int64_t> next{0};
  const auto run = [&] {
    const FloatEnvironment environment;
    work([&] { return next.fetch_add(1, std::memory_order_relaxed); });
  };
  using Run = decltype(run);
  // An exception cannot pass through the runtime.
  const auto run_data = [](void* data) noexcept { (*static_cast<Run*>(data))(); };
  if (threads <= 1 || !has_openmp()) return run();
  GOMP_parallel(run_data, const_cast<void*>(static_cast<const void*>(&run)),
                static_cast<unsigned int>(threads), 0);
}

}  // namespace torchinit::cpu
