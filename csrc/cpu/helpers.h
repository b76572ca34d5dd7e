// Threads that help with work, without anyone waiting for them to start.
//
// At the end of an OpenMP region every thread waits for all others, even for one that the system
// has not yet scheduled: on a busy machine tens of milliseconds, for a fill or a matrix of half a
// millisecond. Here the caller's thread does all pieces that no other thread takes, and continues
// when all are done.
#pragma once

#include <pthread.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>

#include "parallel.h"

namespace torchinit::cpu {

class Work {
 public:
  virtual ~Work() = default;
  // Does one thread's share; the caller's has number 0. When that call returns, all pieces are
  // done, but another thread may still be in its call and access the work's data.
  virtual void run(int64_t number) = 0;
};

// Runs work on this thread, and on up to `helpers` others that become free meanwhile.
void share(const std::shared_ptr<Work>& work, int64_t helpers);

// Pieces that do not depend on each other, taken by threads as they become free.
class Pieces : public Work {
 public:
  // piece(i) does piece i; what it refers to need only live until share() returns.
  Pieces(int64_t count, std::function<void(int64_t)> piece)
      : count_(count), piece_(std::move(piece)) {}
  ~Pieces() override {
    pthread_cond_destroy(&finished_);
    pthread_mutex_destroy(&mutex_);
  }

  void run(int64_t number) override {
    for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) {
      piece_(i);
      if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 < count_) continue;
      pthread_mutex_lock(&mutex_);
      pthread_cond_signal(&finished_);
      pthread_mutex_unlock(&mutex_);
    }
    if (number == 0) wait();
  }

 private:
  // For pieces that other threads have begun. One that has lost its processor is waited for asleep,
  // so that it may have this one.
  void wait() {
    for (int i = 0; i < kSpins; ++i, pause())
      if (done_.load(std::memory_order_acquire) == count_) return;
    pthread_mutex_lock(&mutex_);
    while (done_.load(std::memory_order_acquire) < count_) pthread_cond_wait(&finished_, &mutex_);
    pthread_mutex_unlock(&mutex_);
  }

  static constexpr int kSpins = 1000;

  const int64_t count_;
  const std::function<void(int64_t)> piece_;
  std::atomic<int64_t> next_{0}, done_{0};
  pthread_mutex_t mutex_ = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t finished_ = PTHREAD_COND_INITIALIZER;
};

}  // namespace torchinit::cpu
