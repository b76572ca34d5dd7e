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
#include "quotients.h"

namespace {

using namespace torchinit::TORCHINIT_TARGET;

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

struct CheckAll {
  uint32_t step;
  long cases = 0;

  template <class P, class Q>
  void run(const char*, float least, float greatest) {
    cases += check<P, Q>(least, greatest, step, 3);
  }
};

}  // namespace

int main(int count, char** words) {
  const uint32_t step = count > 1 ? static_cast<uint32_t>(std::atoi(words[1])) : 1;
  if (step == 0 || count > 2) {
    std::fprintf(stderr, "usage: division [STEP]\n");
    return 2;
  }
  CheckAll all{step};
  visit_quotients(all);
  std::printf("quotients by approximate reciprocals: %ld, all correctly rounded\n", all.cases);
  return 0;
}
