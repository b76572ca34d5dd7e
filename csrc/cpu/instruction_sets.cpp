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

struct Candidate {
  const InstructionSet* set;
  bool (*runs_here)();
};

// Fastest first.
constexpr Candidate kCandidates[] = {
#if TORCHINIT_X86
    {&avx512_set,
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
              __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
     }},
    {&avx2_set,
     [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c(); }},
#elif TORCHINIT_ARM64
    {&neon_set, [] { return true; }},
#endif
    {&portable_set, [] { return true; }},
};

// The sets that this processor runs, ended by a null pointer.
struct Supported {
  const InstructionSet* sets[sizeof kCandidates / sizeof *kCandidates + 1] = {};

  Supported() {
#if TORCHINIT_X86
    __builtin_cpu_init();  // also checks that the operating system saves the registers
#endif
    int count = 0;
    for (const Candidate& candidate : kCandidates)
      if (candidate.runs_here()) sets[count++] = candidate.set;
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
