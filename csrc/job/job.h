// One fill of a list: its plan, key, box and address.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "box.h"
#include "plan.h"

namespace torchinit {

struct Job {
  Plan plan;
  uint64_t key;
  Box box;
  void* data;  // the box's first element
};

// Whether the memory of two jobs may overlap, so that their order matters.
inline bool may_overlap(const std::vector<Job>& jobs) {
  std::vector<std::pair<uintptr_t, uintptr_t>> ranges;
  ranges.reserve(jobs.size());
  for (const Job& job : jobs) {
    if (job.box.count == 0) continue;
    int64_t elements = 1;
    for (const Dimension& d : job.box.dimensions) elements += (d.size - 1) * d.memory_stride;
    const uintptr_t begin = reinterpret_cast<uintptr_t>(job.data);
    ranges.emplace_back(begin,
                        begin + static_cast<uintptr_t>(elements * element_size(job.plan.dtype)));
  }
  std::sort(ranges.begin(), ranges.end());
  for (size_t i = 1; i < ranges.size(); ++i)
    if (ranges[i].first < ranges[i - 1].second) return true;
  return false;
}

}  // namespace torchinit
