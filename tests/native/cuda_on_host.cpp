// What the threads of the CUDA kernels do, run on the host over whole grids: every transform and
// dtype, odd sizes, misaligned memory and boxes, against the CPU kernels bit for bit.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "../../csrc/cpu/fill.h"
#include "../../csrc/cpu/orthogonal.h"
#include "../../csrc/cpu/quantised.h"
#include "../../csrc/cuda/contiguous_thread.h"
#include "../../csrc/cuda/orthogonal_launches.h"
#include "../../csrc/cuda/quantised_thread.h"
#include "../../csrc/cuda/strided_thread.h"
#include "../../csrc/job/plan.h"
#include "cases.h"

namespace {

using namespace torchinit;

long fills = 0;

// What visit_strided calls: tile by tile, the threads in turn before and after the barrier.
struct RunTiles {
  const Job& job;

  template <class L, class Store, class Sampler>
  void run(const Sampler& sampler) const {
    const auto keys = TORCHINIT_TARGET::round_keys(job.key);
    const cuda::TiledBox box(job.box, element_size(job.plan.dtype));
    using Tile = cuda::BoxTile<Store>;
    std::vector<typename Store::Element> shared(Tile::kElements);
    for (int64_t number = 0; number < box.tiles; ++number) {
      std::memset(shared.data(), 0xff, shared.size() * sizeof shared[0]);
      const Tile tile(box, number);
      for (int thread = 0; thread < cuda::kStridedThreads; ++thread)
        tile.make(sampler, keys, thread, shared.data());
      for (int thread = 0; thread < cuda::kStridedThreads; ++thread)
        tile.store(thread, shared.data(), static_cast<typename Store::Element*>(job.data));
    }
  }

  template <class Element>
  void run_constant() const {
    for (int64_t thread = 0; thread < 7; ++thread)
      cuda::fill_constant_strided_thread<Element>(job.plan.pattern, cuda::SortedBox(job.box),
                                                  job.data, thread, 7);
  }
};

// What visit_table calls: all chunks of a table by all threads of a thread block.
struct RunTable {
  cuda::Table& table;
  int64_t processors;

  template <class L, class Store, class Sampler>
  void run(const Sampler&) const {
    cuda::cut(table, cuda::Pass<Store, Sampler>::block_packets, processors, 3 * processors);
    for (int chunk = 0; chunk < table.chunks; ++chunk)
      for (int thread = 0; thread < cuda::kThreads; ++thread)
        cuda::fill_chunk<Store, Sampler>(table, chunk, thread);
  }
};

// Returns the number of launches, on a device of so many multiprocessors.
size_t fill_by_tables(const std::vector<Job>& jobs, int64_t processors) {
  auto tables = cuda::make_tables(jobs);
  for (cuda::Table& table : tables) cuda::visit_table(table, RunTable{table, processors});
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
  {
    std::vector<unsigned char> got(bytes, 0xA5);
    cuda::visit_strided(plan, RunTiles{{plan, 99, box, got.data() + offset * element}});
    require_equal(expected, got, plan, "tiles");
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
  // Transposed; every other element; a column; convolutions channels-last, 3x3 and 1x1, and a piece
  // of one; the first dimension the nearest in memory.
  compare(plan, make_box({150, 300}, {1, 150}, {150, 300}, {0, 0}), 45000, 0);
  compare(plan, make_box({151, 131}, {2, 302}, {200, 300}, {7, 9}), 39562, 1);
  compare(plan, make_box({300, 1}, {2, 1}, {300, 7}, {0, 3}), 600, 0);
  compare(plan, make_box({5, 70, 9}, {630, 1, 70}, {5, 70, 9}, {0, 0, 0}), 3150, 0);
  compare(plan, make_box({5, 70, 16}, {1120, 1, 70}, {5, 80, 16}, {0, 10, 0}), 5600, 0);
  compare(plan, make_box({70, 5, 3}, {1, 70, 350}, {70, 5, 3}, {0, 0, 0}), 1050, 0);
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
      const cuda::TiledBox too_many(box, 4);
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
  for (const int64_t processors : {1, 132}) {
    for (auto& bytes : got) std::fill(bytes.begin(), bytes.end(), 0xA5);
    const size_t launches = fill_by_tables(jobs, processors);
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

// Called by visit_table: how much more than its share the busiest multiprocessor gets.
struct CutAlone {
  cuda::Table& table;
  int64_t processors;
  double& excess;

  template <class L, class Store, class Sampler>
  void run(const Sampler&) const {
    const int64_t pass = cuda::Pass<Store, Sampler>::block_packets;
    cuda::cut(table, pass, processors, 3 * processors);
    const int64_t packets =
        cuda::packets_of(table.jobs[0], cuda::elements_of_packet(table.plans[0]));
    std::vector<int64_t> passes(static_cast<size_t>(processors));
    for (int64_t chunk = 0; chunk < table.chunks; ++chunk) {
      const int64_t left = packets - chunk * table.chunk_packets;
      const int64_t some = std::min<int64_t>(table.chunk_packets, left);
      passes[static_cast<size_t>(chunk % processors)] += (some + pass - 1) / pass;
    }
    const int64_t most = *std::max_element(passes.begin(), passes.end());
    excess = static_cast<double>(most * pass * processors) / static_cast<double>(packets);
  }
};

// The matrices of a Llama 8B keep all multiprocessors of an H100 and a B200 equally busy.
void check_shares(const std::vector<Plan>& plans) {
  for (const Plan& plan : plans)
    for (const int64_t processors : {132, 148})
      for (const int64_t elements : {int64_t{4096} * 4096, int64_t{1024} * 4096,
                                     int64_t{14336} * 4096, int64_t{128256} * 4096}) {
        auto tables = cuda::make_tables({{plan, 1, flat_box(elements), nullptr}});
        double excess = 0;
        cuda::visit_table(tables[0], CutAlone{tables[0], processors, excess});
        if (excess > 1.05) tests::stop("a multiprocessor has more than 1.05 of its share to do");
      }
}

// What orthogonal_launches.h launches: thread block by thread block, its threads in turn between
// the barriers.
struct RunBlocks {
  template <class Thread, class T>
  void run(const cuda::DeviceWave<T>& wave, int64_t x, int64_t y, int64_t z, int block) const {
    const auto shared = std::make_unique<typename Thread::Shared>();
    for (int64_t i = 0; i < x * y * z; ++i) {
      std::memset(static_cast<void*>(shared.get()), 0xff, sizeof *shared);
      std::vector<Thread> threads;
      threads.reserve(Thread::threads);
      for (int number = 0; number < Thread::threads; ++number)
        threads.emplace_back(
            wave,
            cuda::Place{i % x, static_cast<int>(i / x % y), static_cast<int>(i / x / y), number},
            block);
      for (Thread& thread : threads) thread.begin(*shared);
      for (int step = 0; step < threads[0].steps; ++step)
        for (Thread& thread : threads) thread.step(*shared, step);
      for (Thread& thread : threads) thread.end(*shared);
    }
  }
};

// Matrices, or the same box of each, of one memory layout.
template <class T, class Store>
void compare_orthogonal(Dtype dtype, const std::vector<int64_t>& shape,
                        const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
                        const std::vector<int64_t>& offset, double gain, size_t count) {
  int64_t reach = 1;
  for (size_t d = 0; d < sizes.size(); ++d) reach += (sizes[d] - 1) * strides[d];
  const size_t bytes = static_cast<size_t>(reach * element_size(dtype));
  std::vector<unsigned char> expected(count * bytes, 0xA5), got = expected;
  OrthogonalJob job = make_orthogonal_job(dtype, sizes, strides, shape, offset, gain);
  for (size_t i = 0; i < count; ++i) {
    job.keys.push_back(11 - 3 * i);
    job.data.push_back(expected.data() + i * bytes);
  }
  cpu::fill_orthogonal(job, 1);
  for (size_t i = 0; i < count; ++i) job.data[i] = got.data() + i * bytes;
  cuda::DeviceFormation<T> formation(job);
  const int64_t size = formation.memory_size();
  if (shape[0] * shape[1] >= kLargeMatrix && shape[1] >= 256 && 4 * size > shape[0] * shape[1])
    tests::stop("a matrix takes more than a quarter of its memory besides");
  std::vector<T> memory(static_cast<size_t>(size));
  std::memset(memory.data(), 0xff, memory.size() * sizeof(T));
  formation.template form<Store>(memory.data(), RunBlocks{});
  ++fills;
  if (expected == got) return;
  std::fprintf(stderr, "an orthogonal matrix (%lld, %lld), dtype %d: thread blocks' bits differ\n",
               static_cast<long long>(shape[0]), static_cast<long long>(shape[1]),
               static_cast<int>(dtype));
  std::exit(1);
}

template <class T, class Store>
void compare_matrices(Dtype dtype) {
  for (const auto& [m, n] : {std::pair<int64_t, int64_t>{1, 1},
                             {5, 3},
                             {32, 32},
                             {33, 40},
                             {70, 64},
                             {300, 50},
                             {50, 300},
                             {130, 130},
                             {600, 40}}) {
    compare_orthogonal<T, Store>(dtype, {m, n}, {m, n}, {n, 1}, {0, 0}, 0.5, 1);
    compare_orthogonal<T, Store>(dtype, {m, n}, {m, n}, {1, m + 1}, {0, 0}, 0.5, 3);
    compare_orthogonal<T, Store>(dtype, {m, n}, {m, n}, {3 * n, 3}, {0, 0}, 1e25, 1);
    const int64_t rows = (m + 1) / 2, columns = (n + 2) / 3;
    compare_orthogonal<T, Store>(dtype, {m, n}, {rows, columns}, {columns, 1}, {m - rows, 0}, 1, 2);
    compare_orthogonal<T, Store>(dtype, {m, n}, {m, columns}, {columns, 1}, {0, n - columns}, 1, 1);
    compare_orthogonal<T, Store>(dtype, {m, n}, {rows, n}, {n, 1}, {m - rows, 0}, 1, 1);
  }
  compare_orthogonal<T, Store>(dtype, {40, 7, 9}, {40, 4, 5}, {1, 40, 200}, {0, 2, 3}, 1, 2);
}

// Any source of values, so that the threads' code is compiled once.
struct AnySource {
  static constexpr bool is_double = false;

  std::function<void(uint64_t, int64_t, int, float (&)[cuda::kPiece])> from;

  void get(uint64_t index, int64_t place, int count, float (&values)[cuda::kPiece]) const {
    from(index, place, count, values);
  }
};

// Called by visit_draws.
struct TakeSource {
  AnySource& to;

  template <class Source>
  void run(const Source& source) const {
    to.from = [source](uint64_t index, int64_t place, int count, float (&values)[cuda::kPiece]) {
      source.get(index, place, count, values);
    };
  }
};

// What fill_quantised launches: some thread blocks, each tile by tile, its threads in turn between
// the barriers.
template <class Thread>
void run_threads(const AnySource& source, const cuda::QuantisedTiles& tiles, bool begins_each) {
  constexpr int64_t blocks = 3;
  for (int64_t block = 0; block < blocks; ++block) {
    typename Thread::Shared shared;
    std::memset(static_cast<void*>(&shared), 0xff, sizeof shared);
    std::vector<Thread> threads;
    threads.reserve(cuda::kQuantiseThreads);
    for (int i = 0; i < cuda::kQuantiseThreads; ++i) threads.emplace_back(source, tiles, i);
    for (Thread& thread : threads) thread.begin(shared);
    for (int64_t tile = block; tile < tiles.count; tile += blocks) {
      if (begins_each)
        for (Thread& thread : threads) thread.begin(shared);
      for (Thread& thread : threads) thread.measure(shared, tile);
      for (Thread& thread : threads) thread.store(shared, tile);
    }
  }
}

void run_quantise(const AnySource& source, const cuda::QuantisedTiles& tiles) {
  if (tiles.held == 0)
    run_threads<cuda::LargeBlockThread<AnySource>>(source, tiles, true);
  else if (tiles.held == 1)
    run_threads<cuda::QuantiseThread<1, AnySource>>(source, tiles, false);
  else
    run_threads<cuda::QuantiseThread<cuda::kMostHeld, AnySource>>(source, tiles, false);
}

uint32_t run_largest(const AnySource& source, int64_t count) {
  using Thread = cuda::LargestThread<AnySource>;
  constexpr int64_t step = 3 * cuda::kQuantiseThreads;
  uint32_t largest = 0;
  for (int64_t first = 0; first < step; first += cuda::kQuantiseThreads) {
    Thread::Shared shared;
    for (int i = 0; i < cuda::kQuantiseThreads; ++i) Thread{source, i}.begin(shared);
    for (int i = 0; i < cuda::kQuantiseThreads; ++i)
      Thread{source, i}.measure(shared, count, first + i, step);
    for (int i = 0; i < cuda::kQuantiseThreads; ++i) Thread{source, i}.end(shared, &largest);
  }
  return largest;
}

// Draws, or values in memory; what is written begins `offset` bytes late.
void compare_quantised(const tests::Quantised& fill, const Plan& plan,
                       const std::vector<float>& values, int64_t offset) {
  tests::QuantisedMemory expected(fill, offset), got(fill, offset);
  QuantisedJob job = fill.job(plan, 99);
  AnySource source;
  if (values.empty()) {
    cuda::visit_draws(plan, job.key, TakeSource{source});
  } else {
    job.values = values.data();
    TakeSource{source}.run(cuda::InMemory{job.values});
  }
  for (const bool has_payload : {true, false}) {
    expected.give(job);
    if (!has_payload) job.payload = nullptr;
    cpu::fill_quantised(job, 1);
    got.give(job);
    if (!has_payload) job.payload = nullptr;
    for (const int most : {cuda::kMostHeld, 1}) {
      run_quantise(source, cuda::QuantisedTiles(job, most));
      require_equal(expected.bytes(), got.bytes(), plan, fill.name.c_str());
    }
    if (offset) break;
  }
}

void compare_largest(const Plan& plan) {
  AnySource source;
  cuda::visit_draws(plan, 99, TakeSource{source});
  for (const int64_t size : {1, 15, 16, 17, 5000, 40000}) {
    const uint32_t largest = run_largest(source, size);
    const float expected = cpu::largest_magnitude(plan, 99, size, 1);
    ++fills;
    if (std::memcmp(&expected, &largest, sizeof largest))
      tests::stop("the largest magnitude differs from the CPU's");
  }
}

void compare_all_quantised(const std::vector<tests::Case>& cases, const std::vector<Plan>& plans,
                           const std::string& folder) {
  const auto fills_here = tests::read_quantised(folder);
  for (const tests::Quantised& fill : fills_here) {
    const Plan plan = tests::find_case(cases, fill.draw).plan(fill.source);
    const std::vector<float> values = tests::some_values(fill);
    for (const int64_t offset : {0, 1, 4}) {
      compare_quantised(fill, plan, {}, offset);
      compare_quantised(fill, plan, values, offset);
    }
  }
  for (const Plan& plan : plans) {
    if (plan.dtype != Dtype::Float32 && plan.dtype != Dtype::BFloat16) continue;
    for (const tests::Quantised& fill : fills_here)
      if (fill.box.rows < 50) compare_quantised(fill, plan, {}, 0);
    compare_largest(plan);
  }
}

}  // namespace

int main(int count, char** words) {
  if (count != 2 && count != 3) tests::stop("usage: cuda_on_host tests/data [large]");
  std::vector<Plan> plans, constants;
  const auto cases = tests::read_cases(words[1]);
  for (const tests::Case& c : tests::one_of_each_transform(cases))
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
  check_shares(plans);
  compare_list(plans);
  compare_list({some[0], some[1], some[2]});  // two kernels, and constants with them
  compare_all_quantised(cases, plans, words[1]);
  using TORCHINIT_TARGET::StoreFloat32;
  using TORCHINIT_TARGET::StoreFloat64;
  compare_matrices<float, StoreFloat32>(Dtype::Float32);
  compare_matrices<double, StoreFloat64>(Dtype::Float64);
  for (const Dtype dtype : {Dtype::Float16, Dtype::BFloat16, Dtype::Float8E4M3, Dtype::Float8E5M2})
    compare_matrices<float, StoreFloat32>(dtype);
  // Several waves, in the tensor and in memory of their own, and few columns.
  if (count == 3) {
    for (const Dtype dtype : {Dtype::Float32, Dtype::BFloat16})
      for (const auto& [m, n] : {std::pair<int64_t, int64_t>{1030, 1024}, {20000, 53}})
        compare_orthogonal<float, StoreFloat32>(dtype, {m, n}, {m, n}, {n, 1}, {0, 0}, 1, 1);
  }
  std::printf("grids on the host: %ld, all equal to the CPU\n", fills);
  return 0;
}
