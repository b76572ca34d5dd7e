// Hashes of filled memory, one line each: instruction set, case, hash. Two machines that keep the
// contract of docs/streams.md print the same hashes (`make arm-check` compares two).
#include <cinttypes>
#include <cstdio>
#include <limits>
#include <vector>

#include "../../csrc/cpu/fill.h"
#include "../../csrc/cpu/kernels.h"
#include "../../csrc/job/plan.h"

namespace {

using namespace torchinit;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Case {
  const char* name;
  Distribution distribution;
  double parameters[4];
};

const Case kCases[] = {
    {"uniform", Distribution::Uniform, {-1, 1.3}},
    {"uniform-from-zero", Distribution::Uniform, {0, 1}},
    {"uniform-clamped", Distribution::Uniform, {1, 1.0009765625}},
    {"uniform-narrow", Distribution::Uniform, {0, 3e-38}},
    {"uniform-float16-subnormal", Distribution::Uniform, {-1e-7, 3e-6}},
    {"normal", Distribution::Normal, {0.1, 2}},
    {"normal-float16-subnormal", Distribution::Normal, {0, 1e-6}},
    {"normal-float16-overflow", Distribution::Normal, {0, 3e4}},
    {"normal-float32-subnormal", Distribution::Normal, {0, 1e-39}},
    {"truncated-2", Distribution::TruncatedNormal, {0, 1, -2, 2}},
    {"truncated-2-below-zero", Distribution::TruncatedNormal, {0, 1, -2, 0}},
    {"truncated-3", Distribution::TruncatedNormal, {0.5, 1, -2, 3}},
    {"truncated-4", Distribution::TruncatedNormal, {0, 1, -4, 5}},
    {"truncated-above", Distribution::TruncatedNormal, {0, 1, 1, kInfinity}},
    {"truncated-plain", Distribution::TruncatedNormal, {0, 0.02, -2, 2}},
    {"truncated-8", Distribution::TruncatedNormal, {0, 1, 8, 10}},
    {"truncated-tail", Distribution::TruncatedNormal, {0, 1, -kInfinity, -50}},
    {"truncated-flat", Distribution::TruncatedNormal, {0, 1, 1, 1 + 1e-8}},
    // Values that underflow to a zero meet a bound that is the other zero.
    {"truncated-at-minus-zero", Distribution::TruncatedNormal, {0, 2e-45, -0.0, 1e-44}},
    {"truncated-at-zero", Distribution::TruncatedNormal, {0, 2e-45, -1e-44, 0}},
    {"truncated-at-minus-zero-wide", Distribution::TruncatedNormal, {0, 1e-323, -0.0, 5e-323}},
    {"truncated-at-zero-wide", Distribution::TruncatedNormal, {0, 1e-323, -5e-323, 0}},
    {"constant", Distribution::Constant, {1.7}},
};

const struct {
  Dtype dtype;
  const char* name;
} kDtypes[] = {
    {Dtype::Float64, "float64"},
    {Dtype::Float32, "float32"},
    {Dtype::Float16, "float16"},
    {Dtype::BFloat16, "bfloat16"},
    {Dtype::Int32, "int32"},
    {Dtype::Int64, "int64"},
    {Dtype::Float8E4M3, "float8_e4m3fn"},
    {Dtype::Float8E5M2, "float8_e5m2"},
};

// reach: the elements of memory from a box's first to its last.
const struct {
  const char* name;
  Box box;
  int64_t reach;
} kBoxes[] = {
    {"flat", flat_box(50003), 50003},
    // Across the blocks where the upper half of the block number changes: 64- and 32-bit words.
    {"far-wide", make_box({777}, {1}, {int64_t{1} << 40}, {(int64_t{1} << 33) - 333}), 777},
    {"far", make_box({777}, {1}, {int64_t{1} << 40}, {(int64_t{1} << 34) - 333}), 777},
    {"middle", make_box({4, 60, 5}, {300, 5, 1}, {9, 70, 11}, {3, 8, 2}), 1200},
    {"transposed", make_box({4, 60, 5}, {1, 4, 240}, {9, 70, 11}, {3, 8, 2}), 1200},
    {"padded-rows", make_box({3, 1111}, {1200, 1}, {3, 1111}, {0, 0}), 3600},
};

bool seen[static_cast<int>(Transform::Constant) + 1];

uint64_t fnv(const std::vector<unsigned char>& bytes) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const unsigned char byte : bytes) hash = (hash ^ byte) * 0x100000001b3u;
  return hash;
}

void print(const Case& c, Dtype dtype, const char* dtype_name) {
  const Plan plan = make_plan(c.distribution, dtype, c.parameters);
  const int transform = static_cast<int>(plan.transform);
  seen[transform] = true;
  for (const auto& b : kBoxes) {
    std::vector<unsigned char> bytes(static_cast<size_t>(b.reach * element_size(dtype)));
    cpu::fill(plan, 0x9e3779b97f4a7c15u, b.box, bytes.data(), 2);
    std::printf("%s %s/transform-%d/%s/%s %016" PRIx64 "\n", cpu::active_set().name, c.name,
                transform, dtype_name, b.name, fnv(bytes));
  }
}

}  // namespace

int main() {
  for (auto set = cpu::supported_sets(); *set; ++set) {
    if (!cpu::choose_set((*set)->name)) return 1;
    for (const auto& d : kDtypes) {
      if (d.dtype == Dtype::Int32 || d.dtype == Dtype::Int64)
        print({"words", Distribution::Words, {}}, d.dtype, d.name);
      else
        for (const Case& c : kCases) print(c, d.dtype, d.name);
    }
  }
  for (size_t transform = 0; transform < sizeof seen; ++transform) {
    if (seen[transform]) continue;
    std::fprintf(stderr, "no case has transform %zu\n", transform);
    return 1;
  }
  return 0;
}
