#include "parallel.h"

#include <pthread.h>

namespace torchinit::cpu {
namespace {

std::atomic<bool> forked{false};

// Registered when the library is loaded. The handler in a child may do almost nothing, because
// other threads of the parent may have held any lock.
const int registered = pthread_atfork(nullptr, nullptr, [] { forked.store(true); });

}  // namespace

bool is_forked() {
  (void)registered;
  return forked.load(std::memory_order_relaxed);
}

}  // namespace torchinit::cpu
