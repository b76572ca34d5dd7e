// Launches the kernel of table_kernel.h, and passes other boxes to their launches.
#include <cuda_runtime.h>

#include <algorithm>

#include "contiguous_thread.h"
#include "fill.h"
#include "launch.h"
#include "table_kernel.h"

namespace torchinit::cuda {
namespace {

// Called by visit_table: cuts the table, and launches the kernel of a store and sampler.
struct LaunchTable {
  Table& table;
  cudaStream_t stream;

  template <class L, class Store, class Sampler>
  void run(const Sampler&) const {
    const auto kernel = table_kernel<Store, Sampler>;
    const int64_t processors = multiprocessors();
    const int64_t blocks = processors * resident_blocks(kernel, kThreads);
    cut(table, Pass<Store, Sampler>::block_packets, processors, blocks);
    kernel<<<static_cast<unsigned int>(std::min<int64_t>(blocks, table.chunks)), kThreads, 0,
             stream>>>(table);
    check_launch();
  }
};

}  // namespace

void fill(const std::vector<Job>& jobs, void* stream) {
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  std::vector<Table> tables = make_tables(jobs);
  for (Table& table : tables) visit_table(table, LaunchTable{table, queue});
  for (const Job& job : jobs)
    if (job.box.count && !is_flat(job.box)) fill_strided(job, stream);
}

}  // namespace torchinit::cuda
