// The float32 rational functions, and the arguments that they have.
#pragma once

#include "../../csrc/math/coefficients.h"

// Calls visit.run<P, Q>(name, least, greatest) for each: 1/4 - q^2 for |q| <= Phi(sigmas) - 1/2,
// and a little more; the root of -log(p) in the tail.
template <class Visitor>
void visit_quotients(Visitor&& visit) {
  using namespace torchinit::coefficients;
  visit.template run<InverseNormalWithin2F32P, InverseNormalWithin2F32Q>("within 2 std", 0.0220f,
                                                                         0.2501f);
  visit.template run<InverseNormalWithin3F32P, InverseNormalWithin3F32Q>("within 3 std", 0.0013f,
                                                                         0.2501f);
  visit.template run<InverseNormalTailF32P, InverseNormalTailF32Q>("in the tail", 2.5f, 9.4f);
}
