// Threads that help with work in steps (parallel.h), and that nobody waits for.
//
// At the end of an OpenMP region every thread waits for all others, also for one that another
// program's time has put aside before it began: tens of milliseconds on a busy machine, for a
// matrix of half a millisecond. Here the caller's thread does whatever no other has taken, and goes
// on when all pieces are done.
#pragma once

#include <cstdint>
#include <memory>

namespace torchinit::cpu {

class Work {
 public:
  virtual ~Work() = default;
  // A thread's share; the caller's has number 0. When one such call ends, all pieces are done.
  // Another thread may still be in its own, and touch what belongs to the work.
  virtual void run(int64_t number) = 0;
};

// Runs work on this thread, and on up to so many others as come while it goes on.
void share(const std::shared_ptr<Work>& work, int64_t helpers);

}  // namespace torchinit::cpu
