// From a plan to its sampler and store: the one place that knows all transforms and dtypes.
#pragma once

#include "../math/samplers.h"
#include "../math/step.h"
#include "../simd/rounding.h"
#include "plan.h"

namespace torchinit::TORCHINIT_TARGET {

// Rounds float32: gives the bits of a 16- or 8-bit dtype in the lowest bits of each 32-bit lane,
// and float32 bits for any other dtype. Not for NaN.
template <class L>
TORCHINIT_INLINE typename L::u32 round_to_dtype(Dtype dtype, typename L::f32 x) {
  using U = typename L::u32;
  switch (dtype) {
    case Dtype::Float16:
      return round_to_small<L, Float16>(x);
    case Dtype::BFloat16:
      return round_to_bfloat16(U(L::bits(x))) >> 16;
    case Dtype::Float8E4M3:
      return round_to_small<L, Float8E4M3>(x);
    case Dtype::Float8E5M2:
      return round_to_small<L, Float8E5M2>(x);
    case Dtype::Float64:
    case Dtype::Float32:
    case Dtype::Int32:
    case Dtype::Int64:
      break;
  }
  return U(L::bits(x));
}

// A sampler of float32 values, stored in the plan's dtype.
TORCHINIT_ANY_SIDE
template <class L, class Visitor, class Sampler>
TORCHINIT_INLINE void visit_narrow(const Visitor& visit, const Plan& plan, const Sampler& sampler) {
  const Dtype dtype = plan.dtype;
  if constexpr (L::may_convert_bfloat16)
    if (dtype == Dtype::BFloat16 && plan.never_subnormal && L::converts_bfloat16())
      return visit.template run<L, StoreNormalBFloat16>(sampler);
  switch (dtype) {
    case Dtype::Float32:
      return visit.template run<L, StoreFloat32>(sampler);
    case Dtype::Float16:
      return visit.template run<L, StoreFloat16>(sampler);
    case Dtype::BFloat16:
      return visit.template run<L, StoreBFloat16>(sampler);
    case Dtype::Float8E4M3:
      return visit.template run<L, StoreFloat8<Float8E4M3>>(sampler);
    case Dtype::Float8E5M2:
      return visit.template run<L, StoreFloat8<Float8E5M2>>(sampler);
    case Dtype::Float64:
    case Dtype::Int32:
    case Dtype::Int64:
      break;  // not stored from float32
  }
}

// Calls visit.run<Lanes, Store>(sampler) for any transform but Constant. L: the backend of choice;
// transforms for remote bounds take one lane at a time.
TORCHINIT_ANY_SIDE
template <class L, class OneLane, class Visitor>
TORCHINIT_INLINE void visit_plan(const Plan& plan, const Visitor& visit) {
  const Dtype dtype = plan.dtype;
  const bool wide = dtype == Dtype::Float64;
  switch (plan.transform) {
    case Transform::Words:
      if (dtype == Dtype::Int32)
        visit.template run<L, StoreWords32>(Independent<WordsValue>{});
      else
        visit.template run<L, StoreWords64>(Independent<WordsValue>{});
      break;
    case Transform::Uniform:
      if (wide)
        visit.template run<L, StoreFloat64>(
            Independent<UniformValue<double, false>>{{plan.uniform64}});
      else
        visit.template run<L, StoreFloat32>(
            Independent<UniformValue<float, false>>{{plan.uniform32}});
      break;
    case Transform::ClampedUniform:
      if (wide)
        visit.template run<L, StoreFloat64>(
            Independent<UniformValue<double, true>>{{plan.uniform64}});
      else
        visit_narrow<L>(visit, plan, Independent<UniformValue<float, true>>{{plan.uniform32}});
      break;
    case Transform::WideUniform:
      visit_narrow<OneLane>(visit, plan,
                            Independent<Widened<UniformValue<double, true>>>{{{plan.uniform64}}});
      break;
    case Transform::Normal:
      if (wide)
        visit.template run<L, StoreFloat64>(NormalSampler<double>{plan.normal64});
      else
        visit_narrow<L>(visit, plan, NormalSampler<float>{plan.normal32});
      break;
    case Transform::ClampedNormal:
      if (wide)
        visit.template run<L, StoreFloat64>(ClampedNormalSampler<double>{plan.clamped_normal64});
      else
        visit_narrow<L>(visit, plan, ClampedNormalSampler<float>{plan.clamped_normal32});
      break;
    case Transform::TruncatedWithin2:
      visit_narrow<L>(visit, plan, Independent<TruncatedCentreValue<2>>{{plan.centre}});
      break;
    case Transform::TruncatedWithin3:
      visit_narrow<L>(visit, plan, Independent<TruncatedCentreValue<3>>{{plan.centre}});
      break;
    case Transform::Truncated:
      if (wide)
        visit.template run<L, StoreFloat64>(
            Independent<TruncatedValue<double>>{{plan.truncated64}});
      else
        visit_narrow<L>(visit, plan, Independent<TruncatedValue<float>>{{plan.truncated32}});
      break;
    case Transform::WideTruncated:
      visit_narrow<OneLane>(visit, plan,
                            Independent<Widened<TruncatedValue<double>>>{{{plan.truncated64}}});
      break;
    case Transform::TruncatedTail:
      if (wide)
        visit.template run<OneLane, StoreFloat64>(Independent<TruncatedTailValue>{{plan.tail}});
      else
        visit_narrow<OneLane>(visit, plan, Independent<Widened<TruncatedTailValue>>{{{plan.tail}}});
      break;
    case Transform::Constant:
      break;
  }
}

}  // namespace torchinit::TORCHINIT_TARGET
