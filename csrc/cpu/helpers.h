// Threads that help with work in steps (parallel.h), without anyone waiting for them to start.
//
// At the end of an OpenMP region every thread waits for all others, even for one that the system
// has not yet scheduled: on a busy machine tens of milliseconds, for a matrix of half a
// millisecond. Here the caller's thread does all pieces that no other thread takes, and continues
// when all are done.
#pragma once

#include <cstdint>
#include <memory>

namespace torchinit::cpu {

class Work {
 public:
  virtual ~Work() = default;
  // Does one thread's share; the caller's has number 0. When one such call returns, all pieces are
  // done, but another thread may still be in its call and access the work's data.
  virtual void run(int64_t number) = 0;
};

// Runs work on this thread, and on up to `helpers` others that become free meanwhile.
void share(const std::shared_ptr<Work>& work, int64_t helpers);

}  // namespace torchinit::cpu
