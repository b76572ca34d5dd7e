// Jobs from Python: numbers and addresses, read without copies because lists may be long.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <vector>

#include "../job/job.h"

namespace torchinit {

// Each item is (what, key, address, count) with what = (distribution, dtype, p0, p1, p2, p3), for
// contiguous elements from logical index 0 on, or has (sizes, strides, shape, start) for the count:
// a box of a logical tensor. Keys are signed.
inline std::vector<Job> read_jobs(const pybind11::list& items) {
  using pybind11::tuple;
  using Sizes = std::vector<int64_t>;
  struct What {
    int64_t distribution, dtype;
    double parameters[4];
  };
  const auto integer = [](const tuple& t, size_t i) { return PyLong_AsLongLong(t[i].ptr()); };
  std::vector<Job> jobs;
  jobs.reserve(items.size());
  What what{}, last{};
  for (const pybind11::handle each : items) {
    const tuple item = each.cast<tuple>(), fields = item[0].cast<tuple>();
    what.distribution = integer(fields, 0);
    what.dtype = integer(fields, 1);
    for (size_t i = 0; i < 4; ++i) what.parameters[i] = PyFloat_AsDouble(fields[2 + i].ptr());
    const uint64_t key = static_cast<uint64_t>(integer(item, 1));
    void* const data = PyLong_AsVoidPtr(item[2].ptr());
    const auto box = [&] {
      if (PyLong_Check(item[3].ptr())) return flat_box(integer(item, 3));
      const tuple where = item[3].cast<tuple>();
      return make_box(where[0].cast<Sizes>(), where[1].cast<Sizes>(), where[2].cast<Sizes>(),
                      where[3].cast<Sizes>());
    };
    // Neighbours often differ in nothing but key and place.
    const bool same = !jobs.empty() && std::memcmp(&what, &last, sizeof what) == 0;
    const Plan plan = same ? jobs.back().plan
                           : make_plan(static_cast<Distribution>(what.distribution),
                                       static_cast<Dtype>(what.dtype), what.parameters);
    jobs.push_back({plan, key, box(), data});
    if (PyErr_Occurred()) throw pybind11::error_already_set();
    last = what;
  }
  return jobs;
}

// Calls fill(jobs) for all of them at once, or for one after the other where their memory overlaps.
template <class FillJobs>
void fill_in_order(std::vector<Job> jobs, const FillJobs& fill) {
  if (!may_overlap(jobs)) return fill(jobs);
  for (Job& job : jobs) fill(std::vector<Job>{std::move(job)});
}

}  // namespace torchinit
