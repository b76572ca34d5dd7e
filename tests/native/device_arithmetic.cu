// Divisions and square roots of CUDA kernels, compared with correctly rounded ones for every
// argument, on a GPU. Without nvcc (c++ -x c++) the host does the same with approximations that are
// as good as they can be, or off by some units in the last place.
//
//     device_arithmetic [STEP [OFF]]
//
// STEP: every so many arguments. OFF: of the host's approximations. Fails if a division or root
// that kernels use is wrong. The root by a reciprocal is not in use: a line says whether it could
// be.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "../../csrc/math/inverse_normal.h"
#include "../../csrc/simd/scalar.h"
#include "quotients.h"

namespace {

using namespace torchinit::TORCHINIT_TARGET;
using L = ScalarLanes;

// A range of floats by their bits, and how far off the host's approximations are.
struct Range {
  uint32_t begin, end, step;
  int off;
};

[[maybe_unused]] TORCHINIT_INLINE float near(float x, int off) {
  return L::from_bits(L::bits_of(x) + static_cast<uint32_t>(off));
}

template <class P, class Q>
struct Quotient {
  static TORCHINIT_INLINE bool is_right(float x, int off) {
    const float a = horner<L, P>(x), b = horner<L, Q>(x);
#if TORCHINIT_DEVICE_PASS
    (void)off;
    const float found = rational<L, P, Q>(x), right = __fdiv_rn(a, b);
#else
    const float found = divide_by_reciprocal(a, b, near(1.0f / b, off)), right = a / b;
#endif
    return L::bits_of(found) == L::bits_of(right);
  }
};

// A root in double precision, rounded once more, is the correctly rounded one.
TORCHINIT_INLINE float exact_root(float x) { return static_cast<float>(L::sqrt(double{x})); }

struct Root {
  static TORCHINIT_INLINE bool is_right(float x, int) {
    return L::bits_of(L::sqrt(x)) == L::bits_of(exact_root(x));
  }
};

struct RootByReciprocal {
  static TORCHINIT_INLINE bool is_right(float x, int off) {
    float reciprocal;
#if TORCHINIT_DEVICE_PASS
    (void)off;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(x));
#else
    reciprocal = static_cast<float>(1.0 / std::sqrt(double{x}));
    if (x > 0) reciprocal = near(reciprocal, off);
#endif
    return L::bits_of(L::sqrt_by_reciprocal(x, reciprocal)) == L::bits_of(exact_root(x));
  }
};

template <class Case>
TORCHINIT_INLINE uint64_t count_wrong(const Range& range, uint64_t first, uint64_t threads) {
  uint64_t wrong = 0;
  for (uint64_t bits = range.begin + first * range.step; bits <= range.end;
       bits += threads * range.step)
    wrong += !Case::is_right(L::from_bits(static_cast<uint32_t>(bits)), range.off);
  return wrong;
}

#if TORCHINIT_CUDA
template <class Case>
__global__ void count_kernel(Range range, unsigned long long* total) {
  const uint64_t threads = uint64_t{gridDim.x} * blockDim.x;
  const uint64_t wrong =
      count_wrong<Case>(range, uint64_t{blockIdx.x} * blockDim.x + threadIdx.x, threads);
  if (wrong) atomicAdd(total, static_cast<unsigned long long>(wrong));
}

void check(cudaError_t status) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "CUDA: %s\n", cudaGetErrorString(status));
  std::exit(2);
}

template <class Case>
uint64_t wrong_in(const Range& range) {
  unsigned long long* there = nullptr;
  unsigned long long wrong = 0;
  check(cudaMalloc(&there, sizeof wrong));
  check(cudaMemset(there, 0, sizeof wrong));
  count_kernel<Case><<<1024, 256>>>(range, there);
  check(cudaGetLastError());
  check(cudaMemcpy(&wrong, there, sizeof wrong, cudaMemcpyDeviceToHost));
  check(cudaFree(there));
  return wrong;
}
#else
template <class Case>
uint64_t wrong_in(const Range& range) {
  return count_wrong<Case>(range, 0, 1);
}
#endif

struct CheckAll {
  uint32_t step;
  int off;
  uint64_t wrong = 0;  // of those in use

  template <class Case>
  uint64_t try_all(const char* name, float least, float greatest) const {
    const Range range{L::bits_of(least), L::bits_of(greatest), step, off};
    const uint64_t found = wrong_in<Case>(range);
    std::printf("%s: %llu arguments, %llu wrong\n", name, (range.end - range.begin) / step + 1ull,
                static_cast<unsigned long long>(found));
    return found;
  }

  template <class P, class Q>
  void run(const char* name, float least, float greatest) {
    std::printf("quotient ");
    wrong += try_all<Quotient<P, Q>>(name, least, greatest);
  }
};

}  // namespace

int main(int count, char** words) {
  const uint32_t step = count > 1 ? static_cast<uint32_t>(std::atoi(words[1])) : 1;
  if (step == 0 || count > 3) {
    std::fprintf(stderr, "usage: device_arithmetic [STEP [OFF]]\n");
    return 2;
  }
  CheckAll all{step, count > 2 ? std::atoi(words[2]) : 0};
  visit_quotients(all);
  // All mantissas at an even and an odd exponent; then the arguments of normal values, and zero.
  uint64_t could = 0;
  const float ranges[][2] = {{1.0f, 4.0f}, {0x1p-40f, 64.0f}, {0.0f, 0.0f}};
  for (const auto& [least, greatest] : ranges) {
    all.wrong += all.try_all<Root>("root", least, greatest);
    could += all.try_all<RootByReciprocal>("root by a reciprocal", least, greatest);
  }
  std::printf("divisions and roots in use: %s; the root by a reciprocal %s be used\n",
              all.wrong ? "WRONG" : "all correctly rounded", could ? "must not" : "could");
  return all.wrong ? 1 : 0;
}
