// The common start of all ways to form orthogonal matrices: normals, gain and memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "../job/orthogonal_job.h"
#include "../job/plan.h"
#include "kernels.h"

namespace torchinit::cpu {

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

template <class T>
using Memory = std::unique_ptr<T[], Free>;

template <class T>
Memory<T> allocate(int64_t elements) {
  void* memory = nullptr;
  const size_t bytes = static_cast<size_t>(round_up(elements * int64_t{sizeof(T)}, 64));
  if (posix_memalign(&memory, 64, bytes) != 0) throw std::bad_alloc();
  return Memory<T>(static_cast<T*>(memory));
}

template <class T>
struct Source {
  static constexpr bool is_double = sizeof(T) == sizeof(double);

  const InstructionSet& set = active_set();
  const BlockKernels<T>& kernels;
  Plan plan;
  const Gain<T> gain;

  explicit Source(const OrthogonalJob& job) : kernels(kernels_of(set)), gain(job.gain), job_(job) {
    const double parameters[4] = {0, 1, 0, 0};
    plan = make_plan(Distribution::Normal, is_double ? Dtype::Float64 : Dtype::Float32, parameters);
  }

  // The normals of a block's vectors, columns `begin` to `end` - 1 from the block's first on:
  // element r * stride + i is vector r's in row begin + i.
  void draw(uint64_t key, int64_t block, int64_t begin, int64_t end, T* to, int64_t stride) const {
    const Reflectors& all = job_.reflectors;
    const uint64_t first = static_cast<uint64_t>(all.first(block)),
                   m = static_cast<uint64_t>(all.m);
    const int64_t count = all.count(block);
    const Dimension rows{count, stride, all.m};
    set.fill_rows(plan, key,
                  {&rows, 1, end - begin, first * m + first + static_cast<uint64_t>(begin)}, 0,
                  count * (end - begin), to, false, false);
  }

  void multiply(T* panel, int64_t rows) const {
    if (gain.formed != 1)
      for (int64_t i = 0; i < rows * kBlock; ++i) panel[i] *= gain.formed;
  }

 private:
  static const BlockKernels<T>& kernels_of(const InstructionSet& set) {
    if constexpr (is_double)
      return set.blocks64;
    else
      return set.blocks32;
  }

  const OrthogonalJob& job_;
};

}  // namespace torchinit::cpu
