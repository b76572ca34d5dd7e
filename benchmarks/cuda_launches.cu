// Times contiguous fills in chunks of other lengths, and by other numbers of thread blocks, than
// csrc/cuda/launch_table.h chooses, on a GPU. The kernels are the real ones. Prints Markdown.
//
//     nvcc ... benchmarks/cuda_launches.cu csrc/job/plan.cpp -o cuda_launches && ./cuda_launches
//
// A number is the speed as a part of cudaMemset's: median of nine, taken in turn.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../csrc/cuda/launch.h"
#include "../csrc/cuda/table_kernel.h"

namespace {

using namespace torchinit;
using namespace torchinit::cuda;
using torchinit::TORCHINIT_TARGET::NormalSampler;
using torchinit::TORCHINIT_TARGET::StoreBFloat16;
using torchinit::TORCHINIT_TARGET::StoreFloat32;

constexpr int kRounds = 9;
constexpr int kPasses[] = {1, 2, 4, 8, 16, 32, 64};
constexpr int kBlocks[] = {3, 6, 9};  // of a multiprocessor

// Milliseconds of work between two events, the second time it is done.
template <class Work>
float time_of(const Work& work) {
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin));
  check(cudaEventCreate(&end));
  float milliseconds = 0;
  for (int i = 0; i < 2; ++i) {
    check(cudaEventRecord(begin));
    work();
    check(cudaEventRecord(end));
    check(cudaEventSynchronize(end));
    check(cudaEventElapsedTime(&milliseconds, begin, end));
  }
  check(cudaEventDestroy(begin));
  check(cudaEventDestroy(end));
  return milliseconds;
}

float median(std::vector<float> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// One job with the table's plan, in chunks of some passes of the loop.
Table table_of(const Plan& plan, void* data, int64_t count, int64_t pass, int64_t passes) {
  Table table = make_tables({{plan, 7, flat_box(count), data}}).front();
  const int64_t packets = packets_of(table.jobs[0], elements_of_packet(plan));
  table.chunk_packets = static_cast<int32_t>(pass * passes);
  table.chunks = static_cast<int32_t>((packets + pass * passes - 1) / (pass * passes));
  table.jobs[0].end = table.chunks;
  return table;
}

struct Way {
  Table table;
  int64_t blocks;
  std::vector<float> parts;
};

template <class Store>
void measure(const char* fill, Dtype dtype, int64_t count) {
  using Sampler = NormalSampler<float>;
  const double standard[4] = {0, 1};
  const Plan plan = make_plan(Distribution::Normal, dtype, standard);
  const size_t bytes = static_cast<size_t>(count) * sizeof(typename Store::Element);
  const int64_t pass = Pass<Store, Sampler>::block_packets, processors = multiprocessors();
  const auto kernel = table_kernel<Store, Sampler>;
  void* data = nullptr;
  check(cudaMalloc(&data, bytes));

  const int64_t resident = resident_blocks(kernel, kThreads);
  std::vector<Way> ways{{table_of(plan, data, count, pass, 1), resident, {}}};
  cut(ways[0].table, pass, processors, processors * resident);  // as fills are
  for (const int passes : kPasses)
    for (const int blocks : kBlocks)
      ways.push_back({table_of(plan, data, count, pass, passes), blocks, {}});
  for (int round = 0; round < kRounds; ++round) {
    const float zero = time_of([&] { check(cudaMemsetAsync(data, 0, bytes)); });
    for (Way& way : ways) {
      const int64_t grid = std::min<int64_t>(way.table.chunks, processors * way.blocks);
      way.parts.push_back(zero / time_of([&] {
                            kernel<<<static_cast<unsigned int>(grid), kThreads>>>(way.table);
                            check_launch();
                          }));
    }
  }
  check(cudaFree(data));

  float best = 0;
  for (const Way& way : ways) best = std::max(best, median(way.parts));
  for (const Way& way : ways)
    std::printf("| %s | %lld | %lld | %.3f |%s%s\n", fill,
                static_cast<long long>(way.table.chunk_packets / pass),
                static_cast<long long>(way.blocks), static_cast<double>(median(way.parts)),
                &way == &ways[0] ? " as chosen" : "", median(way.parts) == best ? " best" : "");
}

}  // namespace

int main() {
  std::printf("| fill | passes a chunk | blocks a multiprocessor | part of cudaMemset's speed |\n");
  std::printf("| --- | --- | --- | --- |\n");
  constexpr int64_t kLarge = int64_t{1} << 30, kMatrix = 4096 * 11008;
  measure<StoreFloat32>("float32 normal, 2^30", Dtype::Float32, kLarge);
  measure<StoreBFloat16>("bfloat16 normal, 2^30", Dtype::BFloat16, kLarge);
  measure<StoreFloat32>("float32 normal, 4096 x 11008", Dtype::Float32, kMatrix);
  measure<StoreBFloat16>("bfloat16 normal, 4096 x 11008", Dtype::BFloat16, kMatrix);
}
