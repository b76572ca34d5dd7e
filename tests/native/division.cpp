// Quotients by an approximate reciprocal (csrc/math/inverse_normal.h) are correctly rounded: all
// arguments of the float32 rational functions, with all reciprocals that a GPU may give. PTX ISA:
// rcp.approx is off by at most one unit in the last place; three are tried on either side.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "../../csrc/math/inverse_normal.h"
#include "../../csrc/simd/scalar.h"

namespace {

using namespace torchinit::TORCHINIT_TARGET;
using namespace torchinit::coefficients;

uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// Every `step`-th float from `begin` to `end`.
template <class P, class Q>
long check(float begin, float end, uint32_t step, int ulps) {
  long cases = 0;
  for (uint32_t bits = bits_of(begin); bits <= bits_of(end); bits += step) {
    const float x = float_of(bits);
    const float a = horner<ScalarLanes, P>(x), b = horner<ScalarLanes, Q>(x), right = a / b;
    const uint32_t reciprocal = bits_of(1.0f / b);
    for (int off = -ulps; off <= ulps; ++off) {
      const float found =
          divide_by_reciprocal(a, b, float_of(reciprocal + static_cast<uint32_t>(off)));
      ++cases;
      if (bits_of(found) == bits_of(right)) continue;
      std::fprintf(stderr, "%a / %a by a reciprocal %d ulp off: %a, not %a\n",
                   static_cast<double>(a), static_cast<double>(b), off, static_cast<double>(found),
                   static_cast<double>(right));
      std::exit(1);
    }
  }
  return cases;
}

}  // namespace

int main(int count, char** words) {
  const uint32_t step = count > 1 ? static_cast<uint32_t>(std::atoi(words[1])) : 1;
  if (step == 0 || count > 2) {
    std::fprintf(stderr, "usage: division [STEP]\n");
    return 2;
  }
  // 1/4 - q^2 for |q| <= Phi(sigmas) - 1/2, and a little more; the root of -log(p) in the tail.
  long cases = 0;
  cases += check<InverseNormalWithin2F32P, InverseNormalWithin2F32Q>(0.0220f, 0.2501f, step, 3);
  cases += check<InverseNormalWithin3F32P, InverseNormalWithin3F32Q>(0.0013f, 0.2501f, step, 3);
  cases += check<InverseNormalTailF32P, InverseNormalTailF32Q>(2.5f, 9.4f, step, 3);
  std::printf("quotients by approximate reciprocals: %ld, all correctly rounded\n", cases);
  return 0;
}
