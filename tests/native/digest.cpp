// Hashes of filled memory.
//
//     digest tests/data                             each instruction set: its name, case, hash
//     digest tests/data --golden                    the table of tests/data/golden.csv
//     digest tests/data --check tests/data/golden.csv   each instruction set against the table
//
// Machines that keep the contract of docs/streams.md print the same (`make arm-check` compares
// two).
#include <cinttypes>
#include <cmath>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "../../csrc/base/stream_version.h"
#include "../../csrc/cpu/fill.h"
#include "../../csrc/cpu/kernels.h"
#include "../../csrc/cpu/orthogonal.h"
#include "../../csrc/cpu/quantised.h"
#include "../../csrc/job/formats.h"
#include "cases.h"

namespace {

using namespace torchinit;
using namespace torchinit::tests;

constexpr uint64_t kKey = 0x9e3779b97f4a7c15u;
constexpr int kValues = 3;

struct Row {
  std::string name, transform, hash, values;  // name: case, dtype and box between commas

  std::string line() const { return name + "," + transform + "," + hash + "," + values; }
};

std::string format(const char* how, uint64_t number) {
  char text[32];
  std::snprintf(text, sizeof text, how, number);
  return text;
}

std::string hash_of(const void* memory, size_t bytes) {
  uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a
  for (size_t i = 0; i < bytes; ++i)
    hash = (hash ^ static_cast<const unsigned char*>(memory)[i]) * 0x100000001b3u;
  return format("%016" PRIx64, hash);
}

std::string values_of(Dtype dtype, const void* memory, int64_t count) {
  const size_t element = static_cast<size_t>(element_size(dtype));
  std::string text;
  for (int64_t i = 0; i < std::min<int64_t>(count, kValues); ++i) {
    uint64_t bits = 0;  // little-endian, as all supported processors are
    std::memcpy(&bits, static_cast<const unsigned char*>(memory) + i * element_size(dtype),
                element);
    char value[40];
    if (is_integer(dtype))
      std::snprintf(value, sizeof value, "%" PRIu64, bits);
    else
      std::snprintf(value, sizeof value, "%a", decode(dtype, bits));
    text += (i ? " " : "") + std::string(value);
  }
  return text;
}

Row row(const std::string& name, const char* transform, Dtype dtype, const void* memory,
        int64_t count) {
  return {name, transform, hash_of(memory, static_cast<size_t>(count * element_size(dtype))),
          values_of(dtype, memory, count)};
}

void add_fills(const std::string& folder, std::vector<Row>& rows) {
  const std::vector<NamedBox> boxes = read_boxes(folder);
  for (const Case& c : read_cases(folder)) {
    for (const DtypeName& d : kDtypeTable) {
      if (!c.fills(d.dtype)) continue;
      const Plan plan = c.plan(d.dtype);
      for (const NamedBox& b : boxes) {
        if (!b.is_for(d.name)) continue;
        std::vector<unsigned char> bytes(static_cast<size_t>(b.reach * element_size(d.dtype)));
        cpu::fill(plan, kKey, b.box, bytes.data(), 2);
        rows.push_back(row(c.name + "," + d.name + "," + b.name, name_of(plan.transform), d.dtype,
                           bytes.data(), b.reach));
      }
    }
  }
}

// Orthogonal matrices of every size class, tall, wide and square: rows and columns.
constexpr int64_t kShapes[][2] = {{1, 1},   {5, 3},    {3, 5},    {32, 32},    {33, 31},
                                  {64, 64}, {300, 50}, {50, 300}, {257, 257},  {700, 300},
                                  {9, 1},   {70, 600}, {1, 9},    {40000, 27}, {1100, 1000}};
// Larger ones are hashed for float32 alone: portable kernels take seconds for them.
constexpr int64_t kQuick = 300 * 300;

std::vector<unsigned char> orthogonal(Dtype dtype, const std::vector<int64_t>& shape,
                                      const std::vector<int64_t>& sizes,
                                      const std::vector<int64_t>& offset,
                                      const std::vector<uint64_t>& keys, double gain) {
  int64_t count = 1;
  std::vector<int64_t> strides(sizes.size());
  for (size_t d = sizes.size(); d-- > 0; count *= sizes[d]) strides[d] = count;
  std::vector<unsigned char> memory(keys.size() * static_cast<size_t>(count * element_size(dtype)));
  OrthogonalJob job = make_orthogonal_job(dtype, sizes, strides, shape, offset, gain);
  job.keys = keys;
  for (size_t i = 0; i < keys.size(); ++i)
    job.data.push_back(memory.data() + i * static_cast<size_t>(count * element_size(dtype)));
  cpu::fill_orthogonal(job, 2);
  return memory;
}

void add_orthogonal(std::vector<Row>& rows) {
  const auto add = [&](const DtypeName& d, const std::string& box,
                       const std::vector<unsigned char>& memory) {
    rows.push_back(row("orthogonal," + std::string(d.name) + "," + box, "", d.dtype, memory.data(),
                       static_cast<int64_t>(memory.size()) / element_size(d.dtype)));
  };
  for (const DtypeName& d : kDtypeTable) {
    if (is_integer(d.dtype)) continue;
    for (const auto& [m, n] : kShapes) {
      if (m * n > kQuick && d.dtype != Dtype::Float32) continue;
      add(d, std::to_string(m) + " " + std::to_string(n),
          orthogonal(d.dtype, {m, n}, {m, n}, {0, 0}, {kKey}, 0.5));
    }
    add(d, "box of 300 7 11",
        orthogonal(d.dtype, {300, 7, 11}, {90, 5, 9}, {200, 1, 2}, {kKey}, 1));
    add(d, "batch of 3 70 40", orthogonal(d.dtype, {70, 40}, {70, 40}, {0, 0}, {kKey, 42, 0}, -2));
    add(d, "gain 1e30 of 20 20", orthogonal(d.dtype, {20, 20}, {20, 20}, {0, 0}, {kKey}, 1e30));
    add(d, "gain 0 of 9 40", orthogonal(d.dtype, {9, 40}, {9, 40}, {0, 0}, {kKey}, 0));
  }
}

// Low-precision weights: the payload, and after it the scales; the values are bytes of the payload.
void add_quantised(const std::string& folder, std::vector<Row>& rows) {
  const std::vector<Case> cases = read_cases(folder);
  for (const Quantised& fill : read_quantised(folder)) {
    const Plan plan = find_case(cases, fill.draw).plan(fill.source);
    QuantisedMemory memory(fill);
    QuantisedJob job = fill.job(plan, kKey);
    memory.give(job);
    cpu::fill_quantised(job, 2);
    const std::vector<unsigned char> bytes = memory.bytes();
    std::string values;
    for (size_t i = 0; i < std::min<size_t>(bytes.size(), kValues); ++i)
      values += (i ? " " : "") + std::to_string(bytes[i]);
    const std::string dtype = fill.source == Dtype::Float32 ? "float32" : "bfloat16";
    rows.push_back({"quantised," + dtype + "," + fill.name, name_of(plan.transform),
                    hash_of(bytes.data(), bytes.size()), values});
  }
}

std::vector<Row> all_rows(const std::string& folder) {
  const std::string version = std::to_string(kStreamVersion);
  std::vector<Row> rows = {{"stream-version,all,all", "", version, version}};
  add_fills(folder, rows);
  add_quantised(folder, rows);
  add_orthogonal(rows);
  return rows;
}

// Returns the number of rows that differ, or are in one of the tables alone.
long differences(const std::vector<Row>& rows, const std::string& path) {
  std::map<std::string, std::string> golden;
  for (const auto& fields : read_table(path)) {
    if (fields.size() != 6) stop("a line of golden.csv has not six fields");
    std::string rest = fields[3] + "," + fields[4] + "," + fields[5];
    golden[fields[0] + "," + fields[1] + "," + fields[2]] = rest;
  }
  long wrong = 0;
  for (const Row& r : rows) {
    const auto found = golden.find(r.name);
    if (found == golden.end() || r.name + "," + found->second != r.line()) {
      ++wrong;
      std::fprintf(stderr, "%s: %s\n  golden: %s\n", cpu::active_set().name, r.line().c_str(),
                   found == golden.end() ? "none" : found->second.c_str());
    }
    if (found != golden.end()) golden.erase(found);
  }
  for (const auto& left : golden)
    std::fprintf(stderr, "golden, but no case: %s\n", left.first.c_str());
  return wrong + static_cast<long>(golden.size());
}

}  // namespace

int main(int count, char** words) {
  const std::string mode = count > 2 ? words[2] : "";
  if (count < 2 || (count == 3 && mode != "--golden") || (count == 4 && mode != "--check") ||
      count > 4)
    stop("usage: digest FOLDER [--golden | --check GOLDEN]");
  const std::string folder = words[1];
  one_of_each_transform(read_cases(folder));  // stops if one is missing
  long wrong = 0;
  for (auto set = cpu::supported_sets(); *set; ++set) {
    if (!cpu::choose_set((*set)->name)) return 1;
    const std::vector<Row> rows = all_rows(folder);
    if (mode == "--check") {
      wrong += differences(rows, words[3]);
      std::printf("%s: %zu golden values\n", (*set)->name, rows.size());
    } else if (mode == "--golden") {
      std::printf("case,dtype,box,transform,hash,values\n");
      for (const Row& r : rows) std::printf("%s\n", r.line().c_str());
      return 0;
    } else {
      for (const Row& r : rows) {
        std::string name = r.name + "," + r.transform;
        for (char& letter : name)
          if (letter == ' ') letter = '-';
        std::printf("%s %s %s\n", (*set)->name, name.c_str(), r.hash.c_str());
      }
    }
  }
  if (wrong)
    stop("NUMBERS CHANGED: " + std::to_string(wrong) +
         " golden values. If that is intended, say which and why in CHANGELOG.md under the stream "
         "version, and make the table anew: python tools/golden.py");
  return 0;
}
