#include "parallel.h"

#include <pthread.h>

namespace torchinit::cpu {
namespace {

std::atomic<bool> forked{false};

// From when the library is loaded on. The handler of a child may do next to nothing: other threads
// of the parent may have held any lock.
const int registered = pthread_atfork(nullptr, nullptr, [] { forked.store(true); });

}  // namespace

bool is_forked() {
  (void)registered;
  return forked.load(std::memory_order_relaxed);
}

}  // namespace torchinit::cpu
