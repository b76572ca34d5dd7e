// From a plan to its sampler and store: the one switch over transforms and dtypes.
#pragma once

#include "distributions.h"
#include "group.h"

namespace torchinit::TORCHINIT_TARGET {

// A sampler of float32 values, stored as the dtype says.
template <class L, class Visitor, class Sampler>
void visit_narrow(const Visitor& visit, Dtype dtype, const Sampler& sampler) {
  if (dtype == Dtype::Float32)
    visit.template run<L, StoreFloat32>(sampler);
  else if (dtype == Dtype::Float16)
    visit.template run<L, StoreFloat16>(sampler);
  else
    visit.template run<L, StoreBFloat16>(sampler);
}

// Calls visit.run<Lanes, Store>(sampler) for any transform but Constant. L: the backend of choice;
// transforms for remote bounds take one lane at a time.
template <class L, class OneLane, class Visitor>
void visit_transform(const Plan& plan, const Visitor& visit) {
  const Dtype dtype = plan.dtype;
  const bool wide = dtype == Dtype::Float64;
  switch (plan.transform) {
    case Transform::Words:
      if (dtype == Dtype::Int32)
        visit.template run<L, StoreWords32>(WordsSampler{});
      else
        visit.template run<L, StoreWords64>(WordsSampler{});
      break;
    case Transform::Uniform:
      if (wide)
        visit.template run<L, StoreFloat64>(UniformSampler<double>{plan.uniform64});
      else
        visit_narrow<L>(visit, dtype, UniformSampler<float>{plan.uniform32});
      break;
    case Transform::Normal:
      if (wide)
        visit.template run<L, StoreFloat64>(NormalSampler<double>{plan.normal64});
      else
        visit_narrow<L>(visit, dtype, NormalSampler<float>{plan.normal32});
      break;
    case Transform::TruncatedCentre:
      visit_narrow<L>(visit, dtype, TruncatedCentreSampler{plan.centre});
      break;
    case Transform::Truncated:
      if (wide)
        visit.template run<L, StoreFloat64>(TruncatedSampler<double>{plan.truncated64});
      else
        visit_narrow<L>(visit, dtype, TruncatedSampler<float>{plan.truncated32});
      break;
    case Transform::TruncatedWide:
      visit_narrow<OneLane>(visit, dtype, TruncatedWideSampler{{plan.truncated64}});
      break;
    case Transform::TruncatedTail:
      if (wide)
        visit.template run<OneLane, StoreFloat64>(TruncatedTailSampler{plan.tail});
      else
        visit_narrow<OneLane>(visit, dtype, TruncatedTailSampler{plan.tail});
      break;
    case Transform::Constant:
      break;
  }
}

}  // namespace torchinit::TORCHINIT_TARGET
