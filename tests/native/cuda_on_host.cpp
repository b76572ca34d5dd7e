// The bodies of the CUDA kernels, run on the host over whole grids: every transform and dtype, odd
// sizes, misaligned memory and boxes, against the CPU kernels bit for bit.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

#include "../../csrc/cpu/fill.h"
#include "../../csrc/cpu/reflectors.h"
#include "../../csrc/cuda/body.h"
#include "../../csrc/cuda/reflector_body.h"
#include "../../csrc/plan.h"

namespace {

using namespace torchinit;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
long fills = 0;

// What visit_transform calls: every thread of a grid in turn.
struct RunGrid {
  uint64_t key;
  const cuda::DeviceBox& box;
  void* data;
  int64_t threads;

  template <class L, class Store, class Sampler>
  void run(const Sampler& sampler) const {
    const auto keys = TORCHINIT_TARGET::round_keys(key);
    for (int64_t thread = 0; thread < threads; ++thread)
      cuda::fill_body<Store>(sampler, keys, box, data, thread, threads);
  }
};

void fill_by_grid(const Plan& plan, uint64_t key, const Box& box, void* data, int64_t threads) {
  using L = TORCHINIT_TARGET::ScalarLanes;
  const cuda::DeviceBox device_box(box);
  if (plan.transform != Transform::Constant)
    return TORCHINIT_TARGET::visit_transform<L, L>(plan, RunGrid{key, device_box, data, threads});
  for (int64_t thread = 0; thread < threads; ++thread) {
    if (element_size(plan.dtype) == 2)
      cuda::fill_constant_body<uint16_t>(plan.pattern, device_box, data, thread, threads);
    else if (element_size(plan.dtype) == 4)
      cuda::fill_constant_body<uint32_t>(plan.pattern, device_box, data, thread, threads);
    else
      cuda::fill_constant_body<uint64_t>(plan.pattern, device_box, data, thread, threads);
  }
}

void compare(const Plan& plan, const Box& box, int64_t reach, int64_t offset) {
  const int64_t element = element_size(plan.dtype);
  const size_t bytes = static_cast<size_t>((reach + offset) * element);
  for (const int64_t threads : {1, 7, 256}) {
    std::vector<unsigned char> expected(bytes, 0xA5), got(bytes, 0xA5);
    cpu::fill(plan, 99, box, expected.data() + offset * element, 1);
    fill_by_grid(plan, 99, box, got.data() + offset * element, threads);
    ++fills;
    if (expected == got) continue;
    std::fprintf(stderr, "transform %d dtype %d: the grid's bits differ from the CPU's\n",
                 static_cast<int>(plan.transform), static_cast<int>(plan.dtype));
    std::exit(1);
  }
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
  work.halves = scalars[2].data();
  work.signs = scalars[3].data();
  for (int64_t row = 0; row < work.rows; ++row) {
    for (int thread = 0; thread < threads; ++thread)
      cuda::draw_reflector<T, Store>(work, row, thread, threads);
    const T* const x = work.vector<T>(row);
    double sums[threads];
    for (int thread = 0; thread < threads; ++thread)
      sums[thread] = TORCHINIT_TARGET::partial_square_sum(x, work.size(row), thread);
    const auto reflector =
        TORCHINIT_TARGET::make_reflector(x[0], TORCHINIT_TARGET::sum_pairwise(sums));
    for (int thread = 0; thread < threads; ++thread)
      cuda::scale_reflector(work, row, reflector, thread, threads);
  }
  ++fills;
  if (expected == got && scalars[0] == scalars[2] && scalars[1] == scalars[3]) return;
  std::fprintf(stderr, "reflectors of length %lld from %lld: a thread block's bits differ\n",
               static_cast<long long>(length), static_cast<long long>(first));
  std::exit(1);
}

}  // namespace

int main() {
  const struct {
    Distribution distribution;
    double parameters[4];
  } cases[] = {
      {Distribution::Uniform, {-1, 1.3}},
      {Distribution::Normal, {0.1, 2}},
      {Distribution::TruncatedNormal, {0, 1, -2, 2}},
      {Distribution::TruncatedNormal, {0, 1, -4, 5}},
      {Distribution::TruncatedNormal, {0, 1, 8, 10}},
      {Distribution::TruncatedNormal, {0, 1, -kInfinity, -50}},
      {Distribution::Constant, {1.5}},
  };
  for (const auto& c : cases)
    for (const Dtype dtype : {Dtype::Float64, Dtype::Float32, Dtype::Float16, Dtype::BFloat16})
      compare_all(make_plan(c.distribution, dtype, c.parameters));
  for (const Dtype dtype : {Dtype::Int32, Dtype::Int64})
    compare_all(make_plan(Distribution::Words, dtype, cases[0].parameters));
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
