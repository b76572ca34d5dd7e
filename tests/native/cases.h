// The cases of tests/data that the native tests share with the Python ones, and names for numbers.
#pragma once

#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "../../csrc/job/box.h"
#include "../../csrc/job/plan.h"

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

}  // namespace torchinit::tests
