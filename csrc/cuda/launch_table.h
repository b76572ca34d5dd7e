// The fills of one launch: many tensors in contiguous memory, cut into chunks. The whole table
// travels as the kernel's argument, so nothing is copied to the device and nothing waits.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "../job/job.h"

namespace torchinit::cuda {

constexpr int kThreads = 256;     // of a thread block, which takes a chunk at a time
constexpr int kPacketBytes = 16;  // written by one store of a thread

// Elements first to first + count - 1 of a logical tensor. Packets are numbered in its order, from
// its element 0 on. For a constant the elements are bytes, and packets are counted from the packet
// boundary before `data`, so they are always aligned.
struct TableJob {
  uint64_t key, first;
  int64_t count;
  void* data;
  int32_t plan;
  int32_t end;  // chunks of this job and earlier ones
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
// The size of arguments that every version of CUDA can pass to a kernel.
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

// Whether a box can be in a table: contiguous in memory and in the logical order.
inline bool is_flat(const Box& box) {
  const Dimension& only = box.dimensions.front();
  return box.dimensions.size() == 1 && only.memory_stride == 1 && only.logical_stride == 1;
}

// The jobs that one kernel can fill: of one transform and dtype. Constants fit into any table.
inline bool same_kernel(const Plan& a, const Plan& b) {
  return a.transform == b.transform && a.dtype == b.dtype;
}

// Cuts the jobs of a table into about the wanted number of chunks: few large tensors and many small
// ones must both keep a device busy.
inline void cut(Table& table, int64_t chunks_wanted) {
  constexpr int64_t kLeast = 4 * kThreads, kMost = 32 * kThreads;  // packets of a chunk
  const auto packets = [&](const TableJob& job) {
    return packets_of(job, elements_of_packet(table.plans[job.plan]));
  };
  int64_t all = 0, end = 0;
  for (int i = 0; i < table.job_count; ++i) all += packets(table.jobs[i]);
  const int64_t even = (all / chunks_wanted + kThreads) / kThreads * kThreads;
  const int64_t chunk = even < kLeast ? kLeast : even > kMost ? kMost : even;
  for (int i = 0; i < table.job_count; ++i) {
    end += (packets(table.jobs[i]) + chunk - 1) / chunk;
    table.jobs[i].end = static_cast<int32_t>(end);
  }
  table.chunk_packets = static_cast<int32_t>(chunk);
  table.chunks = static_cast<int32_t>(end);
}

// Tables of all flat jobs that are not empty.
inline std::vector<Table> make_tables(const std::vector<Job>& jobs, int64_t chunks_wanted) {
  std::vector<Table> tables;
  std::vector<size_t> open;  // the open table of each kernel
  const auto is_constant = [](const Plan& plan) { return plan.transform == Transform::Constant; };
  // The open table for a plan: its own kernel's, or any for a constant.
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

  // Constants go last, into tables that still have room.
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
  for (Table& table : tables) cut(table, chunks_wanted);
  return tables;
}

}  // namespace torchinit::cuda
