// The kernels that nvcc made of csrc/cuda, launched by their own host code on the emulated device,
// against the CPU's kernels bit for bit.
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <set>
#include <sstream>
#include <utility>

#include "../../csrc/cpu/fill.h"
#include "../../csrc/cpu/orthogonal.h"
#include "../../csrc/cpu/quantised.h"
#include "../../csrc/cuda/fill.h"
#include "../../csrc/cuda/orthogonal.h"
#include "../../csrc/cuda/quantised.h"
#include "../native/cases.h"
#include "runtime.h"

namespace {

using namespace torchinit;
using emulator::device;
using emulator::Fault;
using emulator::Watch;

constexpr unsigned char kUntouched = 0xA5;

struct Options {
  std::string cases;
  bool is_full = false;
};

struct Totals {
  int64_t fills = 0, matrices = 0, quantised = 0, values = 0;
} totals;

int64_t as_long(size_t size) { return static_cast<int64_t>(size); }

std::string described(const Plan& plan, const Box& box) {
  return std::string(name_of(plan.transform)) + " of " + kDtypeNames[static_cast<int>(plan.dtype)] +
         ", " + std::to_string(box.count) + " elements from " + std::to_string(box.first);
}

// Memory as a device allocates it.
class Memory {
 public:
  explicit Memory(size_t bytes) : words_((bytes + sizeof(Word) - 1) / sizeof(Word) + 1) {
    std::memset(words_.data(), kUntouched, words_.size() * sizeof(Word));
  }
  unsigned char* data() { return words_.data()->bytes; }

 private:
  struct alignas(256) Word {
    unsigned char bytes[256];
  };
  std::vector<Word> words_;
};

// A fill of a box whose elements reach so far in memory, behind so many others.
void compare(const Plan& plan, const Box& box, int64_t reach, int64_t offset) {
  const int64_t element = element_size(plan.dtype);
  const size_t bytes = static_cast<size_t>((reach + offset) * element);
  Memory expected(bytes), got(bytes);
  cpu::fill(plan, 99, box, expected.data() + offset * element, 1);
  device().global.clear();
  device().global.add(got.data() + offset * element, static_cast<size_t>(reach * element),
                      Watch::Once);
  try {
    cuda::fill({{plan, 99, box, got.data() + offset * element}}, nullptr);
    if (device().global.bytes_written_once() != box.count * element)
      throw Fault("not every element is written");
    if (std::memcmp(expected.data(), got.data(), bytes)) throw Fault("the bits differ");
  } catch (const Fault& fault) {
    throw Fault(described(plan, box) + ": " + fault.what());
  }
  ++totals.fills;
  totals.values += box.count;
}

void compare_all(const Plan& plan, const Options& options) {
  const int64_t packet = 16 / element_size(plan.dtype), chunk = 1024 * packet;
  for (const int64_t size : {1, 2, 5, 64, 1000})
    for (const int64_t offset : {0, 1, 3}) compare(plan, flat_box(size), size, offset);
  for (const int64_t size : {chunk - 1, chunk + 1})
    for (const int64_t offset : {0, 1}) compare(plan, flat_box(size), size, offset);
  compare(plan, flat_box(5 * chunk + 3), 5 * chunk + 3, packet);
  if (options.is_full) compare(plan, flat_box(40 * chunk + 7), 40 * chunk + 7, 1);
  // Where the upper half of the Philox blocks' number changes, and pieces far out.
  const bool is_two_words = plan.dtype == Dtype::Float64 || plan.dtype == Dtype::Int64;
  const int64_t boundary = int64_t{1} << (is_two_words ? 33 : 34), far = int64_t{1} << 40;
  for (const int64_t first : {boundary - 1000, boundary - 4 * packet})
    compare(plan, make_box({chunk}, {1}, {far}, {first}), chunk, 0);
  for (const int64_t first : {int64_t{1}, int64_t{6}, boundary - 3})
    compare(plan, make_box({77}, {1}, {far}, {first}), 77, 1);
  // A box in the middle; its dimensions in another order in memory; padded rows; four dimensions.
  compare(plan, make_box({4, 60, 5}, {300, 5, 1}, {9, 70, 11}, {3, 8, 2}), 1200, 0);
  compare(plan, make_box({4, 60, 5}, {1, 4, 240}, {9, 70, 11}, {3, 8, 2}), 1200, 0);
  compare(plan, make_box({6, 33}, {40, 1}, {6, 33}, {0, 0}), 233, 1);
  compare(plan, make_box({70, 90}, {1, 70}, {70, 90}, {0, 0}), 6300, 1);
  compare(plan, make_box({3, 8, 5, 6}, {240, 1, 48, 8}, {3, 8, 5, 6}, {0, 0, 0, 0}), 720, 0);
}

std::vector<Plan> all_plans(const Options& options) {
  std::vector<Plan> plans;
  for (const tests::Case& c : tests::one_of_each_transform(tests::read_cases(options.cases)))
    for (const tests::DtypeName& d : tests::kDtypeTable)
      if (c.fills(d.dtype)) plans.push_back(c.plan(d.dtype));
  return plans;
}

// Many tensors of all kinds in one call.
void compare_list(const std::vector<Plan>& plans, int count) {
  std::vector<Memory> expected, got;
  std::vector<size_t> sizes;
  std::vector<Job> jobs;
  device().global.clear();
  uint64_t random = 1;
  int64_t written = 0;
  for (int i = 0; i < count; ++i) {
    random = random * 6364136223846793005u + 1442695040888963407u;
    const Plan& plan = plans[(random >> 33) % plans.size()];
    const int64_t size = (random >> 40) % 7 ? static_cast<int64_t>(random >> 51) : 0;
    const int64_t start = static_cast<int64_t>(random >> 45 & 15);
    const int64_t element = element_size(plan.dtype);
    const int64_t offset = static_cast<int64_t>(random >> 30 & 3) * element;
    const Box box = make_box({size}, {1}, {size + start}, {start});
    sizes.push_back(static_cast<size_t>(size * element + offset));
    expected.emplace_back(sizes.back());
    got.emplace_back(sizes.back());
    cpu::fill(plan, random, box, expected.back().data() + offset, 1);
    unsigned char* const data = got.back().data() + offset;
    jobs.push_back({plan, random, box, data});
    device().global.add(data, static_cast<size_t>(size * element), Watch::Once);
    written += size * element;
    totals.values += size;
  }
  cuda::fill(jobs, nullptr);
  if (device().global.bytes_written_once() != written)
    throw Fault("a list: not every element is written");
  for (size_t i = 0; i < jobs.size(); ++i)
    if (std::memcmp(expected[i].data(), got[i].data(), sizes[i]))
      throw Fault("a list: the bits differ of " + described(jobs[i].plan, jobs[i].box));
  totals.fills += count;
}

void compare_fills(const Options& options) {
  const std::vector<Plan> plans = all_plans(options);
  for (const Plan& plan : plans) compare_all(plan, options);
  // None of sixteen dimensions merge.
  std::vector<int64_t> sizes(16, 2), strides, zeros(16, 0);
  for (int d = 0; d < 16; ++d) strides.push_back(int64_t{1} << d);
  compare(plans.front(), make_box(sizes, strides, sizes, zeros), int64_t{1} << 16, 0);
  compare_list(plans, options.is_full ? 700 : 300);
  compare_list({plans[1], plans[7], plans.back()}, 200);  // two kernels, and constants with them
}

// Matrices, or the same box of each, of one memory layout.
struct Matrices {
  Dtype dtype;
  std::vector<int64_t> shape, sizes, strides, offset;
  double gain;
  size_t count;
};

void compare(const Matrices& matrices) {
  int64_t reach = 1;
  for (size_t d = 0; d < matrices.sizes.size(); ++d)
    reach += (matrices.sizes[d] - 1) * matrices.strides[d];
  const int64_t element = element_size(matrices.dtype);
  const size_t bytes = (static_cast<size_t>(reach * element) + 15) / 16 * 16;
  Memory expected(matrices.count * bytes), got(matrices.count * bytes);
  OrthogonalJob job = make_orthogonal_job(matrices.dtype, matrices.sizes, matrices.strides,
                                          matrices.shape, matrices.offset, matrices.gain);
  for (size_t i = 0; i < matrices.count; ++i) {
    job.keys.push_back(11 - 3 * i);
    job.data.push_back(expected.data() + i * bytes);
  }
  cpu::fill_orthogonal(job, 1);
  const size_t besides = static_cast<size_t>(cuda::orthogonal_memory(job));
  Memory memory(besides);
  std::memset(memory.data(), 0xff, besides);
  auto& global = device().global;
  global.clear();
  global.add(memory.data(), besides, Watch::Races,
             matrices.dtype == Dtype::Float64 ? sizeof(double) : sizeof(float));
  for (size_t i = 0; i < matrices.count; ++i) {
    job.data[i] = got.data() + i * bytes;
    global.add(job.data[i], static_cast<size_t>(reach * element), Watch::Races,
               static_cast<size_t>(element));
  }
  const auto description = [&] {
    return std::to_string(matrices.count) + " orthogonal matrices of (" +
           std::to_string(matrices.shape[0]) + ", " + std::to_string(matrices.shape[1]) +
           "), dtype " + kDtypeNames[static_cast<int>(matrices.dtype)] + ": ";
  };
  try {
    cuda::fill_orthogonal(job, memory.data(), nullptr);
    if (std::memcmp(expected.data(), got.data(), matrices.count * bytes))
      throw Fault("the bits differ");
  } catch (const Fault& fault) {
    throw Fault(description() + fault.what());
  }
  totals.matrices += as_long(matrices.count);
  totals.values += job.rows.count() * job.columns.count() * as_long(matrices.count);
}

void compare_matrices(const Options& options) {
  const Dtype dtypes[] = {Dtype::Float32, Dtype::Float64,    Dtype::BFloat16,
                          Dtype::Float16, Dtype::Float8E4M3, Dtype::Float8E5M2};
  // Of more than 256 rows, products are summed in segments.
  const std::pair<int64_t, int64_t> shapes[] = {{1, 1},    {5, 3},    {33, 40},   {70, 64},
                                                {300, 50}, {50, 300}, {130, 130}, {600, 40}};
  for (const Dtype dtype : dtypes) {
    const bool is_whole = options.is_full || element_size(dtype) >= 4;
    for (const auto& [m, n] : shapes) {
      const int64_t rows = (m + 1) / 2, columns = (n + 2) / 3;
      compare({dtype, {m, n}, {m, n}, {n, 1}, {0, 0}, 0.5, 1});
      compare({dtype, {m, n}, {rows, columns}, {columns, 1}, {m - rows, 0}, 1, 2});
      if (!is_whole) continue;
      compare({dtype, {m, n}, {m, n}, {1, m + 1}, {0, 0}, 0.5, 3});
      compare({dtype, {m, n}, {m, n}, {3 * n, 3}, {0, 0}, 1e25, 1});
      compare({dtype, {m, n}, {m, columns}, {columns, 1}, {0, n - columns}, 1, 1});
      compare({dtype, {m, n}, {rows, n}, {n, 1}, {m - rows, 0}, 1, 1});
    }
    compare({dtype, {40, 7, 9}, {40, 4, 5}, {1, 40, 200}, {0, 2, 3}, 1, 2});
  }
  // More than a launch takes together.
  compare({Dtype::Float32, {36, 33}, {36, 33}, {33, 1}, {0, 0}, 1, 70});
  // Several waves: in the tensor, and in memory of their own.
  compare({Dtype::Float32, {20000, 53}, {20000, 53}, {53, 1}, {0, 0}, 1, 1});
  if (!options.is_full) return;
  for (const Dtype dtype : {Dtype::Float32, Dtype::BFloat16, Dtype::Float64}) {
    compare({dtype, {1030, 1024}, {1030, 1024}, {1024, 1}, {0, 0}, 1, 1});
    compare({dtype, {1024, 1030}, {1024, 1030}, {1030, 1}, {0, 0}, 1, 1});
    compare({dtype, {20000, 53}, {20000, 53}, {53, 1}, {0, 0}, 1, 1});
  }
}

// Payload and scales, each byte of which is written once; or one of them alone.
void compare(const tests::Quantised& fill, const Plan& plan, const std::vector<float>& values,
             int64_t offset, bool has_payload = true, bool has_scales = true) {
  const size_t payload = static_cast<size_t>(fill.payload_bytes()),
               scales = static_cast<size_t>(fill.scale_bytes());
  Memory memory[2][2] = {{Memory(payload + 16), Memory(scales)},
                         {Memory(payload + 16), Memory(scales)}};
  QuantisedJob job = fill.job(plan, 99);
  Memory from(values.size() * sizeof(float));
  if (!values.empty()) {
    std::memcpy(from.data(), values.data(), values.size() * sizeof(float));
    job.values = reinterpret_cast<const float*>(from.data());
  }
  const auto give = [&](Memory(&to)[2]) {
    job.payload = has_payload ? to[0].data() + offset : nullptr;
    job.scales = has_scales ? to[1].data() : nullptr;
  };
  give(memory[0]);
  cpu::fill_quantised(job, 1);
  give(memory[1]);
  auto& global = device().global;
  global.clear();
  global.add(from.data(), values.size() * sizeof(float), Watch::Bounds);
  if (has_payload) global.add(job.payload, payload, Watch::Once);
  if (has_scales) global.add(job.scales, scales, Watch::Once);
  try {
    cuda::fill_quantised(job, nullptr);
    if (global.bytes_written_once() !=
        as_long((has_payload ? payload : 0) + (has_scales ? scales : 0)))
      throw Fault("not every byte is written");
    if (std::memcmp(memory[0][0].data(), memory[1][0].data(), payload + 16) ||
        std::memcmp(memory[0][1].data(), memory[1][1].data(), scales))
      throw Fault("the bits differ");
  } catch (const Fault& fault) {
    throw Fault(fill.name + (values.empty() ? "" : " of values in memory") + ", " +
                name_of(plan.transform) + ": " + fault.what());
  }
  ++totals.quantised;
  totals.values += fill.box.matrices * fill.box.rows * fill.box.columns;
}

void compare_largest(const Plan& plan) {
  for (const int64_t size : {1, 17, 9000}) {
    Memory memory(sizeof(float));
    std::memset(memory.data(), 0, sizeof(float));
    device().global.clear();
    device().global.add(memory.data(), sizeof(float), Watch::Races);
    cuda::largest_magnitude(plan, 99, size, memory.data(), nullptr);
    const float expected = cpu::largest_magnitude(plan, 99, size, 1);
    if (std::memcmp(memory.data(), &expected, sizeof expected))
      throw Fault("the largest magnitude differs of " + described(plan, flat_box(size)));
    ++totals.quantised;
    totals.values += size;
  }
}

void compare_quantised(const Options& options) {
  const std::vector<tests::Case> cases = tests::read_cases(options.cases);
  const auto fills = tests::read_quantised(options.cases);
  for (const tests::Quantised& fill : fills) {
    const Plan plan = tests::find_case(cases, fill.draw).plan(fill.source);
    const std::vector<float> values = tests::some_values(fill);
    compare(fill, plan, {}, 0);
    compare(fill, plan, values, fill.box.rows % 2 ? 1 : 4);
    compare(fill, plan, {}, 0, false, true);
    compare(fill, plan, values, 0, true, false);
  }
  // Every kernel: of the formats that fill three ways, on a few values.
  for (const Plan& plan : all_plans(options)) {
    if (plan.dtype != Dtype::Float32 && plan.dtype != Dtype::BFloat16) continue;
    for (const auto& [rows, columns] : {std::pair<int64_t, int64_t>{1, 32}, {128, 64}, {1, 4112}}) {
      tests::Quantised few = fills.front();
      few.format.rows = rows, few.format.columns = columns;
      few.rows = few.box.rows = 3, few.columns = few.box.columns = 4150;
      if (rows > 1) few.rows = few.box.rows = 129, few.columns = few.box.columns = 70;
      if (columns < 64) few.rows = few.box.rows = 9, few.columns = few.box.columns = 600;
      compare(few, plan, {}, 0);
    }
    compare_largest(plan);
  }
}

// So much address space, of which only what is written takes memory.
class Reserved {
 public:
  explicit Reserved(size_t bytes)
      : bytes_(bytes),
        data_(mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {
    if (data_ == MAP_FAILED) tests::stop("cannot reserve " + std::to_string(bytes) + " bytes");
  }
  Reserved(const Reserved&) = delete;
  Reserved& operator=(const Reserved&) = delete;
  ~Reserved() { munmap(data_, bytes_); }
  unsigned char* data() const { return static_cast<unsigned char*>(data_); }

 private:
  size_t bytes_;
  void* data_;
};

// Fills a box of more elements than 32 bits can number by a few of its thread blocks: as many as
// there are for a device of very many multiprocessors, around the ends and around 2^31 and 2^32
// elements. Whatever they write must be the CPU's bits: `place` tells elements from the first.
void compare_blocks(const Plan& plan, const Box& box, unsigned char* data, size_t bytes,
                    const std::function<uint64_t(uint64_t)>& logical_of_place) {
  const int64_t element = element_size(plan.dtype);
  auto& machine = device();
  machine.settings.multiprocessors = 1 << 20;
  machine.settings.sample = [&](int64_t blocks) {
    std::set<int64_t> chosen = {0, 1, blocks / 2, blocks - 2, blocks - 1};
    for (const int shift : {31, 32, 33}) {
      const double share = std::ldexp(1.0, shift) / static_cast<double>(box.count);
      const int64_t middle = static_cast<int64_t>(share * static_cast<double>(blocks));
      for (int64_t i = middle - 1; i <= middle + 1; ++i)
        if (i < blocks) chosen.insert(i);
    }
    return std::vector<int64_t>(chosen.begin(), chosen.end());
  };
  machine.global.clear();
  machine.global.add(data, bytes, Watch::Touched);
  cuda::fill({{plan, 5, box, data}}, nullptr);
  machine.settings.sample = nullptr;
  int64_t beyond = 0;
  for (const auto& [begin, end] : machine.global.touched()) {
    const uint64_t first =
        (begin - reinterpret_cast<uint64_t>(data)) / static_cast<size_t>(element);
    const int64_t count = static_cast<int64_t>(end - begin) / element;
    if (first >> 32) beyond += count;
    std::vector<unsigned char> expected(static_cast<size_t>(end - begin));
    if (!logical_of_place) {
      cpu::fill(plan, 5, make_box({count}, {1}, {box.count}, {static_cast<int64_t>(first)}),
                expected.data(), 1);
    } else {
      for (int64_t i = 0; i < count; ++i)
        cpu::fill(
            plan, 5,
            make_box({1}, {1}, {box.count},
                     {static_cast<int64_t>(logical_of_place(first + static_cast<uint64_t>(i)))}),
            expected.data() + i * element, 1);
    }
    if (std::memcmp(expected.data(), data + first * static_cast<size_t>(element), expected.size()))
      throw Fault("the bits differ of " + described(plan, box) + ", at " + std::to_string(first));
    totals.values += count;
  }
  if (!beyond) throw Fault("no element beyond 2^32 is written of " + described(plan, box));
  ++totals.fills;
}

void compare_big(const Options& options) {
  const double parameters[4] = {0, 1, 0, 0};
  constexpr int64_t count = (int64_t{1} << 33) + 777;
  for (const Dtype dtype : {Dtype::BFloat16, Dtype::Float32, Dtype::Float8E4M3}) {
    if (!options.is_full && dtype == Dtype::Float8E4M3) continue;
    const int64_t element = element_size(dtype);
    const Reserved memory(static_cast<size_t>(count * element));
    for (const int64_t offset : {0, 3})
      compare_blocks(make_plan(Distribution::Normal, dtype, parameters), flat_box(count - offset),
                     memory.data() + offset * element,
                     static_cast<size_t>((count - offset) * element), nullptr);
  }
  constexpr int64_t rows = 65537, columns = 65600;
  const Reserved memory(rows * columns * sizeof(float));
  compare_blocks(make_plan(Distribution::Normal, Dtype::Float32, parameters),
                 make_box({rows, columns}, {1, rows}, {rows, columns}, {0, 0}), memory.data(),
                 rows * columns * sizeof(float),
                 [](uint64_t place) { return place % rows * columns + place / rows; });
}

// How the launches of ordinary shapes turn out on devices of several sizes.
void show_shapes(const Options&) {
  // The cheapest: stores and passes are those of every distribution.
  const double parameters[4] = {-1, 1, 0, 0};
  const std::pair<int64_t, int64_t> shapes[] = {{4096, 11008}, {4096, 4096}, {14336, 4096}};
  std::printf("%-12s %-9s %4s %7s %7s %7s %7s %8s %8s %6s\n", "uniform", "dtype", "sms", "blocks",
              "16 B", "8 B", "4 B", "less", "passes", "over");
  for (const auto& [rows, columns] : shapes) {
    for (const Dtype dtype : {Dtype::Float32, Dtype::BFloat16}) {
      for (const int multiprocessors : {132, 148}) {
        const int64_t element = element_size(dtype), bytes = rows * columns * element;
        const Reserved memory(static_cast<size_t>(bytes));
        auto& machine = device();
        machine.global.clear();
        machine.global.add(memory.data(), static_cast<size_t>(bytes), Watch::Bounds);
        machine.settings.multiprocessors = multiprocessors;
        machine.counts = {};
        cuda::fill({{make_plan(Distribution::Uniform, dtype, parameters), 5,
                     flat_box(rows * columns), memory.data()}},
                   nullptr);
        const auto& counts = machine.counts;
        const auto share = [&](int64_t stores, int64_t size) {
          return 100.0 * static_cast<double>(stores * size) / static_cast<double>(bytes);
        };
        int64_t most = 0, all = 0, busiest = 0, busy = 0;
        for (const int64_t passes : counts.passes) most = std::max(most, passes), all += passes;
        for (const int64_t some : counts.busy) busiest = std::max(busiest, some), busy += some;
        const std::string shape = std::to_string(rows) + "x" + std::to_string(columns);
        std::printf(
            "%-12s %-9s %4d %7lld %6.1f%% %6.1f%% %6.1f%% %6.1f%% %8lld %5.1f%%\n", shape.c_str(),
            dtype == Dtype::Float32 ? "float32" : "bfloat16", multiprocessors,
            static_cast<long long>(counts.blocks), share(counts.stores[16], 16),
            share(counts.stores[8], 8), share(counts.stores[4], 4),
            share(counts.stores[2], 2) + share(counts.stores[1], 1), static_cast<long long>(most),
            100.0 *
                (static_cast<double>(busiest) * multiprocessors / static_cast<double>(busy) - 1));
        ++totals.fills;
      }
    }
  }
}

std::string contents(const std::string& path) {
  std::ifstream file(path);
  if (!file) tests::stop("cannot read " + path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

const std::map<std::string, void (*)(const Options&)> kParts = {
    {"fills", compare_fills}, {"matrices", compare_matrices}, {"quantised", compare_quantised},
    {"big", compare_big},     {"shapes", show_shapes},
};

}  // namespace

int main(int count, char** words) {
  if (count < 6)
    tests::stop(
        "usage: compare fills|matrices|quantised|big|shapes multiprocessors quick|full tests/data "
        "PTX...");
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  const auto part = kParts.find(words[1]);
  if (part == kParts.end()) tests::stop(std::string("no part: ") + words[1]);
  const Options options{words[4], std::string(words[3]) == "full"};
  try {
    for (int i = 5; i < count; ++i) device().read(contents(words[i]));
    device().settings.multiprocessors = std::atoi(words[2]);
    part->second(options);
  } catch (const Fault& fault) {
    tests::stop(fault.what());
  }
  std::printf(
      "kernels %zu, fills %lld, matrices %lld, quantised %lld, launches %lld, blocks %lld, values "
      "%lld\n",
      device().kernels().size(), static_cast<long long>(totals.fills),
      static_cast<long long>(totals.matrices), static_cast<long long>(totals.quantised),
      static_cast<long long>(device().counts.launches),
      static_cast<long long>(device().counts.blocks), static_cast<long long>(totals.values));
  return 0;
}
