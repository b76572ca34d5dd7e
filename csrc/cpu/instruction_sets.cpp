// Chooses the compilation of the kernels that runs.
#include <atomic>
#include <cstring>

#include "kernels.h"
#if TORCHINIT_X86
#include <cpuid.h>
#endif

namespace torchinit::cpu {
namespace {

#if TORCHINIT_X86
// Clang does not know __builtin_cpu_supports("f16c").
bool has_f16c() {
  unsigned int eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}
#endif

struct Supported {
  const InstructionSet* sets[4] = {};

  Supported() {
    int count = 0;
#if TORCHINIT_X86
    __builtin_cpu_init();  // also checks that the operating system saves the registers
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
      sets[count++] = &avx512_set;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c())
      sets[count++] = &avx2_set;
#elif TORCHINIT_ARM64
    sets[count++] = &neon_set;
#endif
    sets[count++] = &portable_set;
  }
};

std::atomic<const InstructionSet*> chosen{nullptr};

}  // namespace

const InstructionSet* const* supported_sets() {
  static const Supported supported;
  return supported.sets;
}

const InstructionSet& active_set() {
  const InstructionSet* set = chosen.load(std::memory_order_relaxed);
  return set ? *set : *supported_sets()[0];
}

bool choose_set(const char* name) {
  for (const InstructionSet* const* set = supported_sets(); *set; ++set) {
    if (std::strcmp((*set)->name, name) != 0) continue;
    chosen.store(*set, std::memory_order_relaxed);
    return true;
  }
  return false;
}

}  // namespace torchinit::cpu
