#include "helpers.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "../base/float_environment.h"
#include "parallel.h"

// Symbol versions from before glibc 2.34, which moved them to another library: see
// older_libraries.cpp. Only for the module: a program may link libraries without versions.
#if TORCHINIT_LINUX && defined(__PIC__) && !defined(__PIE__)
#if TORCHINIT_X86
__asm__(".symver pthread_create,pthread_create@GLIBC_2.2.5");
#elif TORCHINIT_ARM64
__asm__(".symver pthread_create,pthread_create@GLIBC_2.17");
#endif
#endif

namespace torchinit::cpu {
namespace {

// A helper spins for more work before it sleeps, some 50 us: about as long as waking it would take.
constexpr int kSpins = 4000;

// Work that still needs helpers, and the number that the next helper gets.
struct Wanted {
  std::shared_ptr<Work> work;
  int64_t next, end;
};

// Lives forever, like its threads. A forked child has none of them and never comes here.
class Helpers {
 public:
  void share(const std::shared_ptr<Work>& work, int64_t helpers) {
    pthread_mutex_lock(&mutex_);
    for (; threads_ < helpers && start(); ++threads_) {
    }
    wanted_.push_back({work, 1, 1 + helpers});
    places_.fetch_add(helpers, std::memory_order_release);
    // Each that wakes wakes another, so that this thread can begin.
    for (int64_t i = 0; i < std::min<int64_t>(helpers, 2); ++i) pthread_cond_signal(&news_);
    pthread_mutex_unlock(&mutex_);
    work->run(0);
    pthread_mutex_lock(&mutex_);
    for (size_t i = 0; i < wanted_.size(); ++i)
      if (wanted_[i].work == work) {
        places_.fetch_sub(wanted_[i].end - wanted_[i].next, std::memory_order_relaxed);
        wanted_.erase(wanted_.begin() + static_cast<ptrdiff_t>(i));
        break;
      }
    pthread_mutex_unlock(&mutex_);
  }

 private:
  // Blocks all signals, so that the program's own threads get them.
  bool start() {
    sigset_t all, before;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &before);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_t thread;
    const int status = pthread_create(
        &thread, &attributes,
        [](void* helpers) -> void* {
          static_cast<Helpers*>(helpers)->help();
          return nullptr;
        },
        this);
    pthread_attr_destroy(&attributes);
    sigprocmask(SIG_SETMASK, &before, nullptr);
    return status == 0;
  }

  [[noreturn]] void help() {
    const FloatEnvironment environment;
    for (;;) {
      for (int i = 0; i < kSpins && places_.load(std::memory_order_acquire) == 0; ++i) pause();
      pthread_mutex_lock(&mutex_);
      while (wanted_.empty()) pthread_cond_wait(&news_, &mutex_);
      Wanted& first = wanted_.front();
      std::shared_ptr<Work> work = first.work;
      const int64_t number = first.next++;
      if (first.next == first.end)
        wanted_.erase(wanted_.begin());
      else
        pthread_cond_signal(&news_);
      places_.fetch_sub(1, std::memory_order_relaxed);
      pthread_mutex_unlock(&mutex_);
      work->run(number);
      work.reset();
    }
  }

  pthread_mutex_t mutex_ = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t news_ = PTHREAD_COND_INITIALIZER;
  std::vector<Wanted> wanted_;
  std::atomic<int64_t> places_{0};
  int64_t threads_ = 0;
};

}  // namespace

void share(const std::shared_ptr<Work>& work, int64_t helpers) {
  const FloatEnvironment environment;
  if (helpers <= 0 || is_forked()) return work->run(0);
  static Helpers* const all = new Helpers;
  all->share(work, helpers);
}

}  // namespace torchinit::cpu
