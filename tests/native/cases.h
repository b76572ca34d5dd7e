// The cases of tests/data that the native tests share with the Python ones, and names for numbers.
#pragma once

#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "../../csrc/job/box.h"
#include "../../csrc/job/plan.h"
#include "../../csrc/job/quantised_job.h"

namespace torchinit::tests {

struct DtypeName {
  Dtype dtype;
  const char* name;
};

constexpr DtypeName kDtypeTable[] = {
    {Dtype::Float64, "float64"},
    {Dtype::Float32, "float32"},
    {Dtype::Float16, "float16"},
    {Dtype::BFloat16, "bfloat16"},
    {Dtype::Int32, "int32"},
    {Dtype::Int64, "int64"},
    {Dtype::Float8E4M3, "float8_e4m3fn"},
    {Dtype::Float8E5M2, "float8_e5m2"},
};

struct Case {
  std::string name;
  Distribution distribution;
  double parameters[4];

  bool fills(Dtype dtype) const {
    return is_integer(dtype) == (distribution == Distribution::Words);
  }
  Plan plan(Dtype dtype) const { return make_plan(distribution, dtype, parameters); }
};

struct NamedBox {
  std::string name, dtypes;
  Box box;
  int64_t reach;  // elements of memory from the box's first to its last

  bool is_for(const char* dtype) const { return dtypes == "all" || dtypes == dtype; }
};

[[noreturn]] inline void stop(const std::string& message) {
  std::fprintf(stderr, "%s\n", message.c_str());
  std::exit(1);
}

// The fields of each line but the first.
inline std::vector<std::vector<std::string>> read_table(const std::string& path) {
  std::ifstream file(path);
  if (!file) stop("cannot read " + path);
  std::vector<std::vector<std::string>> rows;
  std::string line, field;
  for (std::getline(file, line); std::getline(file, line);) {
    rows.emplace_back();
    for (std::istringstream fields(line); std::getline(fields, field, ',');)
      rows.back().push_back(field);
  }
  return rows;
}

inline Distribution distribution_of(const std::string& name) {
  std::string capitals = name;
  for (char& letter : capitals) letter = static_cast<char>(std::toupper(letter));
  for (int i = 0; i < kDistributions; ++i)
    if (capitals == kDistributionNames[i]) return static_cast<Distribution>(i);
  stop("there is no distribution " + name);
}

inline std::vector<Case> read_cases(const std::string& folder) {
  std::vector<Case> cases;
  for (const auto& row : read_table(folder + "/fills.csv")) {
    if (row.size() != 6) stop("a line of fills.csv has not six fields");
    Case c{row[0], distribution_of(row[1]), {}};
    for (size_t i = 0; i < 4; ++i) c.parameters[i] = std::strtod(row[2 + i].c_str(), nullptr);
    cases.push_back(c);
  }
  return cases;
}

inline std::vector<int64_t> numbers(const std::string& text) {
  std::vector<int64_t> found;
  int64_t number;
  for (std::istringstream words(text); words >> number;) found.push_back(number);
  return found;
}

inline std::vector<NamedBox> read_boxes(const std::string& folder) {
  std::vector<NamedBox> boxes;
  for (const auto& row : read_table(folder + "/boxes.csv")) {
    if (row.size() != 6) stop("a line of boxes.csv has not six fields");
    const auto sizes = numbers(row[2]), strides = numbers(row[3]);
    int64_t reach = 1;
    for (size_t d = 0; d < sizes.size(); ++d) reach += (sizes[d] - 1) * strides[d];
    boxes.push_back(
        {row[0], row[1], make_box(sizes, strides, numbers(row[4]), numbers(row[5])), reach});
  }
  return boxes;
}

inline const Case& find_case(const std::vector<Case>& cases, const std::string& name) {
  for (const Case& c : cases)
    if (c.name == name) return c;
  stop("there is no case " + name);
}

// The first cases that together have every transform of every dtype. Stops if a transform has no
// case at all.
inline std::vector<Case> one_of_each_transform(const std::vector<Case>& cases) {
  constexpr int transforms = static_cast<int>(Transform::Constant) + 1;
  bool seen[transforms] = {}, seen_for[transforms][sizeof kDtypeTable / sizeof *kDtypeTable] = {};
  std::vector<Case> chosen;
  for (const Case& c : cases) {
    bool is_new = false;
    for (const DtypeName& d : kDtypeTable) {
      if (!c.fills(d.dtype)) continue;
      const int transform = static_cast<int>(c.plan(d.dtype).transform);
      bool& known = seen_for[transform][&d - kDtypeTable];
      is_new = is_new || !known;
      seen[transform] = known = true;
    }
    if (is_new) chosen.push_back(c);
  }
  for (int transform = 0; transform < transforms; ++transform)
    if (!seen[transform])
      stop(std::string("no case has the transform ") + name_of(static_cast<Transform>(transform)));
  return chosen;
}

// Low-precision weights: a line of quantised.csv, whose format has the fields of BlockFormat.
struct Quantised {
  std::string name, draw;
  Dtype source;
  BlockFormat format;
  float largest;
  int64_t rows, columns;
  MatrixBox box;

  int64_t payload_bytes() const {
    return box.matrices * box.rows * box.columns / (format.packed ? 2 : 1);
  }
  Extended row_blocks() const { return {box.first_row, box.rows, format.rows, rows}; }
  Extended column_blocks() const {
    return {box.first_column, box.columns, format.columns, columns};
  }
  int64_t scale_size() const { return format.scale_dtype == ScaleDtype::Float32 ? 4 : 1; }
  int64_t scale_bytes() const {
    return box.matrices * row_blocks().blocks * column_blocks().blocks * scale_size();
  }
  // With nowhere to write to yet.
  QuantisedJob job(const Plan& plan, uint64_t key) const {
    return {plan, key, nullptr, format, whole_scale(largest), rows, columns, box, nullptr, nullptr};
  }
};

// What a job writes, in memory of its size to the byte; the payload begins `offset` bytes later.
class QuantisedMemory {
 public:
  explicit QuantisedMemory(const Quantised& fill, int64_t offset = 0)
      : offset_(offset),
        payload_(static_cast<size_t>(fill.payload_bytes() + offset), 0xA5),
        scales_(static_cast<size_t>(fill.scale_bytes()), 0xA5) {}

  unsigned char* payload() { return payload_.data() + offset_; }
  unsigned char* scales() { return scales_.data(); }
  void give(QuantisedJob& job) {
    job.payload = payload();
    job.scales = scales();
  }
  std::vector<unsigned char> bytes() const {
    std::vector<unsigned char> all = payload_;
    all.insert(all.end(), scales_.begin(), scales_.end());
    return all;
  }

 private:
  int64_t offset_;
  std::vector<unsigned char> payload_, scales_;
};

// Values of all kinds for a job that quantises what is in memory.
inline std::vector<float> some_values(const Quantised& fill) {
  const Extended rows = fill.row_blocks(), columns = fill.column_blocks();
  std::vector<float> values(static_cast<size_t>(fill.box.matrices * (rows.end - rows.begin) *
                                                (columns.end - columns.begin)));
  uint64_t random = 1;
  for (size_t i = 0; i < values.size(); ++i) {
    random = random * 6364136223846793005u + 1442695040888963407u;
    // Finite, of many exponents or of one; runs of zeros, which fill blocks.
    uint32_t bits = static_cast<uint32_t>(random >> 32);
    if ((bits >> 23 & 255) == 255) bits ^= 0x40000000u;
    if (i / 1000 % 3 == 1) bits = (bits & 0x80ffffffu) | 0x3e000000u;
    if (i / 700 % 5 == 4) bits &= 0x80000000u;
    std::memcpy(&values[i], &bits, sizeof bits);
  }
  return values;
}

inline std::vector<Quantised> read_quantised(const std::string& folder) {
  std::vector<Quantised> fills;
  for (const auto& row : read_table(folder + "/quantised.csv")) {
    if (row.size() != 7) stop("a line of quantised.csv has not seven fields");
    const auto format = numbers(row[3]), matrix = numbers(row[5]), box = numbers(row[6]);
    fills.push_back({row[0],
                     row[1],
                     row[2] == "float32" ? Dtype::Float32 : Dtype::BFloat16,
                     {format[0], format[1], format[2] != 0, static_cast<ScaleRule>(format[3]),
                      static_cast<ScaleDtype>(format[4])},
                     std::strtof(row[4].c_str(), nullptr),
                     matrix[0],
                     matrix[1],
                     {box[0], box[1], box[2], box[3], box[4], box[5]}});
  }
  return fills;
}

}  // namespace torchinit::tests
