// The fills of one launch: many tensors in contiguous memory, cut into chunks. The whole table
// travels as the kernel's argument, so nothing is copied to the device and nothing waits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "../job/job.h"

namespace torchinit::cuda {

constexpr int kThreads = 256;     // of a thread block, which takes a chunk at a time
constexpr int kPacketBytes = 16;  // what one store of a thread writes

// Elements first to first + count - 1 of a logical tensor. Packets are numbered in its order from
// its element 0 on. Of a constant the elements are bytes, and memory begins at the packet boundary
// before `data`: its packets are always aligned.
struct TableJob {
  uint64_t key, first;
  int64_t count;
  void* data;
  int32_t plan;
  int32_t end;  // chunks of this job and those before it
};

struct Table {
  static constexpr int kPlans = 8, kJobs = 84;

  Plan plans[kPlans];
  TableJob jobs[kJobs];
  int32_t plan_count, job_count;
  int32_t chunks;
  int32_t chunk_packets;

  // The job that a chunk belongs to.
  TORCHINIT_INLINE int job_of(int chunk) const {
    int low = 0, high = job_count - 1;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (chunk < jobs[middle].end)
        high = middle;
      else
        low = middle + 1;
    }
    return low;
  }
};
// What every version of CUDA can pass to a kernel.
static_assert(sizeof(Table) <= 4096, "too large for a kernel's argument");

TORCHINIT_INLINE int elements_of_packet(const Plan& plan) {
  return plan.transform == Transform::Constant ? kPacketBytes
                                               : kPacketBytes / element_size(plan.dtype);
}

// The packets that a job touches.
TORCHINIT_INLINE int64_t packets_of(const TableJob& job, int elements) {
  const uint64_t last = job.first + static_cast<uint64_t>(job.count) - 1;
  return static_cast<int64_t>(last / elements - job.first / elements) + 1;
}

// Whether a box can be in a table: one run of neighbours, in memory and in the logical order.
inline bool is_flat(const Box& box) {
  const Dimension& only = box.dimensions.front();
  return box.dimensions.size() == 1 && only.memory_stride == 1 && only.logical_stride == 1;
}

// What one kernel can fill: jobs of one transform and dtype. Constants are at home in any table.
inline bool same_kernel(const Plan& a, const Plan& b) {
  return a.transform == b.transform && a.dtype == b.dtype;
}

// Cuts the jobs of a table into chunks of whole passes: what all threads of a thread block store in
// one pass of their loop. Chunks go round the multiprocessors, so the busiest one gets a chunk more
// than others: the longest chunks are taken with which it has at most 5% more to do than its share,
// or as little more as there can be.
//   pass: packets. blocks: thread blocks that run at once, on all multiprocessors.
inline void cut(Table& table, int64_t pass, int64_t processors, int64_t blocks) {
  constexpr int64_t kMostPasses = 32;
  const auto over = [](int64_t items, int64_t each) { return (items + each - 1) / each; };
  int64_t passes[Table::kJobs], all = 0;
  for (int i = 0; i < table.job_count; ++i) {
    const TableJob& job = table.jobs[i];
    passes[i] = over(packets_of(job, elements_of_packet(table.plans[job.plan])), pass);
    all += passes[i];
  }
  const auto busiest = [&](int64_t chunk) {
    int64_t chunks = 0;
    for (int i = 0; i < table.job_count; ++i) chunks += over(passes[i], chunk);
    return over(chunks, processors) * chunk;
  };
  int64_t best = 1, least = INT64_MAX;
  for (int64_t chunk = std::clamp<int64_t>(all / blocks, 1, kMostPasses); chunk > 0; --chunk) {
    const int64_t most = busiest(chunk);
    if (most < least) best = chunk, least = most;
    if (20 * most * processors <= 21 * all) break;
  }
  int64_t end = 0;
  for (int i = 0; i < table.job_count; ++i) {
    end += over(passes[i], best);
    table.jobs[i].end = static_cast<int32_t>(end);
  }
  table.chunk_packets = static_cast<int32_t>(best * pass);
  table.chunks = static_cast<int32_t>(end);
}

// Tables of all flat jobs that are not empty, still to be cut.
inline std::vector<Table> make_tables(const std::vector<Job>& jobs) {
  std::vector<Table> tables;
  std::vector<size_t> open;  // the table that each kernel's next job goes to
  const auto is_constant = [](const Plan& plan) { return plan.transform == Transform::Constant; };
  // The open table for a plan: of its own kernel, for a constant any.
  const auto find_open = [&](const Plan& plan) {
    for (size_t i = 0; i < open.size(); ++i)
      if (is_constant(plan) || same_kernel(tables[open[i]].plans[0], plan)) return i;
    return open.size();
  };
  const auto find_plan = [](const Table& table, const Plan& plan) {
    int i = 0;
    while (i < table.plan_count && std::memcmp(&table.plans[i], &plan, sizeof plan) != 0) ++i;
    return i;
  };

  // Constants last, when the tables that have room for them are there.
  for (const bool constants : {false, true}) {
    for (const Job& job : jobs) {
      const Plan& plan = job.plan;
      if (is_constant(plan) != constants || job.box.count == 0 || !is_flat(job.box)) continue;
      const size_t kernel = find_open(plan);
      if (kernel == open.size()) {
        open.push_back(tables.size());
        tables.emplace_back();
      }
      const Table& last = tables[open[kernel]];
      if (last.job_count == Table::kJobs || find_plan(last, plan) == Table::kPlans) {
        open[kernel] = tables.size();
        tables.emplace_back();
      }
      Table& table = tables[open[kernel]];
      const int number = find_plan(table, plan);
      if (number == table.plan_count) table.plans[table.plan_count++] = plan;
      TableJob& entry = table.jobs[table.job_count++];
      entry = {job.key, job.box.first, job.box.count, job.data, number, 0};
      if (constants) {
        entry.first = reinterpret_cast<uintptr_t>(job.data) % kPacketBytes;
        entry.count *= element_size(plan.dtype);
      }
    }
  }
  return tables;
}

}  // namespace torchinit::cuda
