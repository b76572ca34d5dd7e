// What the threads of the CUDA kernels do, run on the host over whole grids: every transform and
// dtype, odd sizes, misaligned memory and boxes, against the CPU kernels bit for bit.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "../../csrc/cpu/fill.h"
#include "../../csrc/cpu/reflectors.h"
#include "../../csrc/cuda/contiguous_thread.h"
#include "../../csrc/cuda/reflector_thread.h"
#include "../../csrc/cuda/strided_thread.h"
#include "../../csrc/job/plan.h"
#include "cases.h"

namespace {

using namespace torchinit;

long fills = 0;

// What visit_strided calls: every thread of a grid in turn.
struct RunStridedGrid {
  const Job& job;
  const cuda::DeviceBox& box;
  int64_t threads;

  template <class L, class Store, class Sampler>
  void run(const Sampler& sampler) const {
    const auto keys = TORCHINIT_TARGET::round_keys(job.key);
    for (int64_t thread = 0; thread < threads; ++thread)
      cuda::fill_strided_thread<Store>(sampler, keys, box, job.data, thread, threads);
  }

  template <class Element>
  void run_constant() const {
    for (int64_t thread = 0; thread < threads; ++thread)
      cuda::fill_constant_strided_thread<Element>(job.plan.pattern, box, job.data, thread, threads);
  }
};

void fill_by_grid(const Job& job, int64_t threads) {
  const cuda::DeviceBox box(job.box);
  cuda::visit_strided(job.plan, RunStridedGrid{job, box, threads});
}

// What visit_table calls: all chunks of a table by all threads of a thread block.
struct RunTable {
  const cuda::Table& table;

  template <class L, class Store, class Sampler>
  void run(const Sampler&) const {
    for (int chunk = 0; chunk < table.chunks; ++chunk)
      for (int thread = 0; thread < cuda::kThreads; ++thread)
        cuda::fill_chunk<Store, Sampler>(table, chunk, thread);
  }
};

// Returns the number of launches.
size_t fill_by_tables(const std::vector<Job>& jobs, int64_t chunks_wanted) {
  const auto tables = cuda::make_tables(jobs, chunks_wanted);
  for (const cuda::Table& table : tables) cuda::visit_table(table, RunTable{table});
  return tables.size();
}

void require_equal(const std::vector<unsigned char>& expected,
                   const std::vector<unsigned char>& got, const Plan& plan, const char* how) {
  ++fills;
  if (expected == got) return;
  std::fprintf(stderr, "transform %d dtype %d: the bits by %s differ from the CPU's\n",
               static_cast<int>(plan.transform), static_cast<int>(plan.dtype), how);
  std::exit(1);
}

void compare(const Plan& plan, const Box& box, int64_t reach, int64_t offset) {
  const int64_t element = element_size(plan.dtype);
  const size_t bytes = static_cast<size_t>((reach + offset) * element);
  std::vector<unsigned char> expected(bytes, 0xA5);
  cpu::fill(plan, 99, box, expected.data() + offset * element, 1);
  for (const int64_t threads : {1, 7, 256}) {
    std::vector<unsigned char> got(bytes, 0xA5);
    fill_by_grid({plan, 99, box, got.data() + offset * element}, threads);
    require_equal(expected, got, plan, "a grid");
  }
  if (!cuda::is_flat(box)) return;
  std::vector<unsigned char> got(bytes, 0xA5);
  fill_by_tables({{plan, 99, box, got.data() + offset * element}}, 1);
  require_equal(expected, got, plan, "a table");
}

// Sizes around those of packets and chunks, and a run across the blocks where the upper half of
// the block number changes.
void compare_long(const Plan& plan) {
  const int64_t packet = cuda::kPacketBytes / element_size(plan.dtype);
  const int64_t chunk = 4 * cuda::kThreads * packet;
  for (const int64_t size : {chunk - 1, chunk, chunk + 1, 3 * chunk + 5})
    for (const int64_t offset : {int64_t{0}, int64_t{1}, packet})
      compare(plan, flat_box(size), size, offset);
  const bool two_words = plan.dtype == Dtype::Float64 || plan.dtype == Dtype::Int64;
  const int64_t boundary = int64_t{1} << (two_words ? 33 : 34);
  for (const int64_t offset : {boundary - 1000, boundary - 4 * packet})
    compare(plan, make_box({chunk}, {1}, {int64_t{1} << 40}, {offset}), chunk, 0);
}

void compare_all(const Plan& plan) {
  for (const int64_t size : {1, 2, 3, 4, 5, 63, 64, 65, 1000})
    for (const int64_t offset : {0, 1, 2, 3}) compare(plan, flat_box(size), size, offset);
  // Pieces of a longer tensor, far out.
  for (const int64_t start : {int64_t{1}, int64_t{6}, (int64_t{1} << 34) - 3})
    compare(plan, make_box({77}, {1}, {int64_t{1} << 40}, {start}), 77, 1);
  // A box in the middle; the same with its dimensions in another order in memory; padded rows.
  compare(plan, make_box({4, 60, 5}, {300, 5, 1}, {9, 70, 11}, {3, 8, 2}), 1200, 0);
  compare(plan, make_box({4, 60, 5}, {1, 4, 240}, {9, 70, 11}, {3, 8, 2}), 1200, 0);
  compare(plan, make_box({6, 33}, {40, 1}, {6, 33}, {0, 0}), 240, 0);
  compare(plan, make_box({3, 8, 5, 6}, {240, 1, 48, 8}, {3, 8, 5, 6}, {0, 0, 0, 0}), 720, 0);
}

// As many dimensions as there is room for, none of which merge, and one more.
void compare_most_dimensions(const Plan& plan) {
  std::vector<int64_t> sizes, strides, zeros;
  for (int d = 0; d <= cuda::kMaxRank; ++d) {
    sizes.push_back(2);
    strides.push_back(int64_t{1} << d);
    zeros.push_back(0);
    const Box box = make_box(sizes, strides, sizes, zeros);
    if (d + 1 < cuda::kMaxRank) continue;
    if (d + 1 == cuda::kMaxRank) {
      compare(plan, box, box.count, 0);
      continue;
    }
    try {
      const cuda::DeviceBox too_many(box);
    } catch (const std::invalid_argument&) {
      return;
    }
  }
  tests::stop("a box of too many dimensions is no error");
}

// Many tensors of all kinds at once, sizes from none to several chunks, against single fills.
void compare_list(const std::vector<Plan>& plans) {
  std::vector<std::vector<unsigned char>> expected, got;
  std::vector<Job> jobs;
  uint64_t random = 1;
  for (int i = 0; i < 700; ++i) {
    random = random * 6364136223846793005u + 1442695040888963407u;
    const Plan& plan = plans[(random >> 33) % plans.size()];
    const int64_t size = (random >> 40) % 7 ? static_cast<int64_t>(random >> 50) : 0;
    const int64_t start = static_cast<int64_t>(random >> 45 & 15);
    const int64_t element = element_size(plan.dtype);
    const Box box = make_box({size}, {1}, {size + start}, {start});
    const int64_t offset = static_cast<int64_t>(random >> 30 & 3) * element;
    expected.emplace_back(static_cast<size_t>(size * element + offset), 0xA5);
    got.push_back(expected.back());
    cpu::fill(plan, random, box, expected.back().data() + offset, 1);
    jobs.push_back({plan, random, box, got.back().data() + offset});
  }
  for (const int64_t chunks : {1, 100000}) {
    for (auto& bytes : got) std::fill(bytes.begin(), bytes.end(), 0xA5);
    const size_t launches = fill_by_tables(jobs, chunks);
    if (launches > plans.size() + jobs.size() / cuda::Table::kJobs) {
      std::fprintf(stderr, "%zu launches for %zu plans\n", launches, plans.size());
      std::exit(1);
    }
    for (size_t i = 0; i < jobs.size(); ++i)
      require_equal(expected[i], got[i], jobs[i].plan, "a table of many");
  }
  for (auto& bytes : got) std::fill(bytes.begin(), bytes.end(), 0xA5);
  cpu::fill(jobs, 3);
  for (size_t i = 0; i < jobs.size(); ++i)
    require_equal(expected[i], got[i], jobs[i].plan, "a list on the CPU");
}

// Householder vectors by the phases of a thread block.
template <class T, class Store>
void compare_reflectors(Dtype dtype, int64_t length, int64_t first, int64_t count) {
  constexpr int threads = TORCHINIT_TARGET::kPartialSums;
  const int64_t keys[] = {11, -12};
  const size_t values = static_cast<size_t>(2 * count * (length - first));
  std::vector<T> expected(values), got(values);
  std::vector<T> scalars[4];
  for (auto& each : scalars) each.resize(static_cast<size_t>(2 * count));
  cpu::fill_reflectors(
      {dtype, keys, 2, first, count, length, expected.data(), scalars[0].data(), scalars[1].data()},
      1);
  cuda::DeviceReflectors work{};
  work.keys[0] = static_cast<uint64_t>(keys[0]);
  work.keys[1] = static_cast<uint64_t>(keys[1]);
  work.rows = 2 * count;
  work.first = first;
  work.count = count;
  work.length = length;
  work.vectors = got.data();
  work.half_norms = scalars[2].data();
  work.signs = scalars[3].data();
  for (int64_t row = 0; row < work.rows; ++row) {
    const auto place = work.place(row);
    for (int thread = 0; thread < threads; ++thread)
      cuda::draw_reflector<T, Store>(work, place, thread, threads);
    const T* const x = work.vector<T>(place);
    double sums[threads];
    for (int thread = 0; thread < threads; ++thread)
      sums[thread] = TORCHINIT_TARGET::partial_square_sum(x, place.size, thread);
    const auto reflector =
        TORCHINIT_TARGET::make_reflector(x[0], TORCHINIT_TARGET::sum_pairwise(sums));
    for (int thread = 0; thread < threads; ++thread)
      cuda::scale_reflector(work, row, place, reflector, thread, threads);
  }
  ++fills;
  if (expected == got && scalars[0] == scalars[2] && scalars[1] == scalars[3]) return;
  std::fprintf(stderr, "reflectors of length %lld from %lld: a thread block's bits differ\n",
               static_cast<long long>(length), static_cast<long long>(first));
  std::exit(1);
}

}  // namespace

int main(int count, char** words) {
  if (count != 2) tests::stop("usage: cuda_on_host tests/data");
  std::vector<Plan> plans, constants;
  for (const tests::Case& c : tests::one_of_each_transform(tests::read_cases(words[1])))
    for (const tests::DtypeName& d : tests::kDtypeTable)
      if (c.fills(d.dtype))
        (c.distribution == Distribution::Constant ? constants : plans).push_back(c.plan(d.dtype));
  const Plan some[] = {plans[1], plans[7], constants.back()};
  plans.insert(plans.end(), constants.begin(), constants.end());
  for (const Plan& plan : plans) {
    compare_all(plan);
    compare_long(plan);
  }
  compare_most_dimensions(some[0]);
  compare_list(plans);
  compare_list({some[0], some[1], some[2]});  // two kernels, and constants with them
  for (const int64_t length : {1, 5, 64, 65, 300}) {
    for (const int64_t first : {int64_t{0}, length / 3, length - 1}) {
      const int64_t count = length - first < 17 ? length - first : 17;
      compare_reflectors<float, TORCHINIT_TARGET::StoreFloat32>(Dtype::Float32, length, first,
                                                                count);
      compare_reflectors<double, TORCHINIT_TARGET::StoreFloat64>(Dtype::Float64, length, first,
                                                                 count);
    }
  }
  std::printf("grids on the host: %ld, all equal to the CPU\n", fills);
  return 0;
}
