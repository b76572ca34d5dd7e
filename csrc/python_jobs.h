// Jobs from Python: numbers and addresses, read without copies because lists may be long.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <vector>

#include "job.h"

namespace torchinit {

// Each item is (distribution, dtype, p0, p1, p2, p3, key, address, count) for contiguous elements
// from logical index 0 on, or has (sizes, strides, shape, start) for the count: a box of a logical
// tensor. Keys are signed.
inline std::vector<Job> read_jobs(const pybind11::list& items) {
  struct What {
    int64_t distribution, dtype;
    double parameters[4];
  };
  std::vector<Job> jobs;
  jobs.reserve(items.size());
  What what{}, last{};
  for (const pybind11::handle item : items) {
    const pybind11::tuple fields = pybind11::reinterpret_borrow<pybind11::tuple>(item);
    const auto integer = [&](int i) { return PyLong_AsLongLong(fields[i].ptr()); };
    what.distribution = integer(0);
    what.dtype = integer(1);
    for (int i = 0; i < 4; ++i) what.parameters[i] = PyFloat_AsDouble(fields[2 + i].ptr());
    const uint64_t key = static_cast<uint64_t>(integer(6));
    void* const data = PyLong_AsVoidPtr(fields[7].ptr());
    using Sizes = std::vector<int64_t>;
    Box box = fields.size() == 9 ? flat_box(integer(8))
                                 : make_box(fields[8].cast<Sizes>(), fields[9].cast<Sizes>(),
                                            fields[10].cast<Sizes>(), fields[11].cast<Sizes>());
    if (PyErr_Occurred()) throw pybind11::error_already_set();
    // Neighbours often differ in nothing but key and place.
    const bool same = !jobs.empty() && std::memcmp(&what, &last, sizeof what) == 0;
    const Plan plan = same ? jobs.back().plan
                           : make_plan(static_cast<Distribution>(what.distribution),
                                       static_cast<Dtype>(what.dtype), what.parameters);
    jobs.push_back({plan, key, std::move(box), data});
    last = what;
  }
  return jobs;
}

// Calls fill(jobs) for all of them at once, or for one after the other where their memory overlaps.
template <class Fill>
void fill_in_order(std::vector<Job> jobs, const Fill& fill) {
  if (!may_overlap(jobs)) return fill(jobs);
  for (Job& job : jobs) fill(std::vector<Job>{std::move(job)});
}

}  // namespace torchinit
