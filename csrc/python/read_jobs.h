// Reads jobs from Python: numbers and addresses, through Python's own interface, because lists may
// be long and single fills short. Invalid arguments raise before anything is written.
#pragma once

#include <pybind11/pybind11.h>

#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../base/float_environment.h"
#include "../job/job.h"
#include "../job/orthogonal_job.h"
#include "../job/quantised_job.h"

namespace torchinit {

// Releases the interpreter lock until the end of its scope.
class WithoutLock {
 public:
  WithoutLock() : state_(PyEval_SaveThread()) {}
  ~WithoutLock() { PyEval_RestoreThread(state_); }
  WithoutLock(const WithoutLock&) = delete;
  WithoutLock& operator=(const WithoutLock&) = delete;

 private:
  PyThreadState* state_;
};

inline int64_t read_integer(PyObject* number) {
  const long long value = PyLong_AsLongLong(number);
  if (value == -1 && PyErr_Occurred()) throw pybind11::error_already_set();
  return value;
}

inline double read_real(PyObject* number) {
  const double value = PyFloat_AsDouble(number);
  if (value == -1 && PyErr_Occurred()) throw pybind11::error_already_set();
  return value;
}

inline void* read_address(PyObject* number) {
  void* const value = PyLong_AsVoidPtr(number);
  if (!value && PyErr_Occurred()) throw pybind11::error_already_set();
  return value;
}

inline int64_t checked_count(int64_t count) {
  if (count < 0) throw std::invalid_argument("cannot fill " + std::to_string(count) + " elements");
  return count;
}

// A list or tuple with access by index, or an error that names what it should be.
class Items {
 public:
  Items(PyObject* sequence, const char* name) : owner_(PySequence_Fast(sequence, name)) {
    if (!owner_) throw pybind11::error_already_set();
  }
  ~Items() { Py_DECREF(owner_); }
  Items(const Items&) = delete;
  Items& operator=(const Items&) = delete;

  size_t size() const { return static_cast<size_t>(PySequence_Fast_GET_SIZE(owner_)); }
  PyObject* operator[](size_t i) const {
    return PySequence_Fast_GET_ITEM(owner_, static_cast<Py_ssize_t>(i));
  }

 private:
  PyObject* owner_;
};

// A draw: the number of a distribution and its parameters.
struct Draw {
  int64_t distribution;
  double parameters[4];
};

inline bool operator==(const Draw& a, const Draw& b) {
  return std::memcmp(&a, &b, sizeof a) == 0;  // distinguishes zeros by their signs
}

inline Dtype dtype_of(int64_t number) {
  if (number < 0 || number >= kDtypes)
    throw std::invalid_argument("there is no dtype " + std::to_string(number));
  return static_cast<Dtype>(number);
}

inline Plan plan_of(const Draw& draw, int64_t number) {
  const bool words = draw.distribution == static_cast<int64_t>(Distribution::Words);
  if (draw.distribution < 0 || draw.distribution >= kDistributions)
    throw std::invalid_argument("there is no distribution " + std::to_string(draw.distribution));
  const Dtype dtype = dtype_of(number);
  if (words != is_integer(dtype))
    throw std::invalid_argument("distribution " + std::to_string(draw.distribution) +
                                " does not fill dtype " + std::to_string(number));
  return make_plan(static_cast<Distribution>(draw.distribution), dtype, draw.parameters);
}

inline Draw read_draw(PyObject* object) {
  const Items fields(object, "a draw must be a tuple (distribution, p0, p1, p2, p3)");
  if (fields.size() != 5)
    throw std::invalid_argument("a draw has 5 fields, got " + std::to_string(fields.size()));
  Draw draw{read_integer(fields[0]), {}};
  for (size_t i = 0; i < 4; ++i) draw.parameters[i] = read_real(fields[1 + i]);
  return draw;
}

inline std::vector<int64_t> read_integers(PyObject* object) {
  const Items items(object,
                    "sizes, strides, global_shape and offset must be sequences of integers");
  std::vector<int64_t> numbers(items.size());
  for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = read_integer(items[i]);
  return numbers;
}

// A number of contiguous elements from logical index 0 on, or (sizes, strides, global_shape,
// offset).
inline Box read_box(PyObject* object) {
  if (PyLong_Check(object)) return flat_box(checked_count(read_integer(object)));
  const Items fields(object, "a box must be a number of elements or a tuple");
  if (fields.size() != 4)
    throw std::invalid_argument("a box has 4 fields, got " + std::to_string(fields.size()));
  return make_box(read_integers(fields[0]), read_integers(fields[1]), read_integers(fields[2]),
                  read_integers(fields[3]));
}

// The jobs of fill_list's columns. Neighbours with equal draws and dtypes share a plan.
inline std::vector<Job> read_jobs(pybind11::handle draws, pybind11::handle dtypes,
                                  pybind11::handle keys, pybind11::handle addresses,
                                  pybind11::handle boxes) {
  const Items draw_column(draws.ptr(), "draws must be a list"),
      dtype_column(dtypes.ptr(), "dtypes must be a list"),
      key_column(keys.ptr(), "keys must be a list"),
      address_column(addresses.ptr(), "addresses must be a list"),
      box_column(boxes.ptr(), "boxes must be a list");
  const size_t count = draw_column.size();
  for (const Items* column : {&dtype_column, &key_column, &address_column, &box_column})
    if (column->size() != count)
      throw std::invalid_argument("draws, dtypes, keys, addresses and boxes must be equally long");
  std::vector<Job> jobs;
  jobs.reserve(count);
  PyObject* last_object = nullptr;
  Draw last{};
  int64_t last_dtype = -1;
  for (size_t i = 0; i < count; ++i) {
    const int64_t dtype = read_integer(dtype_column[i]);
    bool same = dtype == last_dtype;
    if (draw_column[i] != last_object) {
      const Draw draw = read_draw(draw_column[i]);
      same = same && draw == last;
      last = draw;
      last_object = draw_column[i];
    }
    last_dtype = dtype;
    jobs.push_back({same ? jobs.back().plan : plan_of(last, dtype),
                    static_cast<uint64_t>(read_integer(key_column[i])), read_box(box_column[i]),
                    read_address(address_column[i])});
  }
  return jobs;
}

// Calls fill(jobs) for all jobs at once, or for one after the other if their memory overlaps.
template <class FillJobs>
void fill_in_order(std::vector<Job> jobs, const FillJobs& fill) {
  if (!may_overlap(jobs)) return fill(jobs);
  for (Job& job : jobs) fill(std::vector<Job>{std::move(job)});
}

// Orthogonal matrices, the same box of each.
inline OrthogonalJob read_orthogonal_job(int64_t dtype, pybind11::handle keys,
                                         pybind11::handle addresses, pybind11::handle sizes,
                                         pybind11::handle strides, pybind11::handle global_shape,
                                         pybind11::handle offset, double gain) {
  const Items key_column(keys.ptr(), "keys must be a list"),
      address_column(addresses.ptr(), "addresses must be a list");
  if (key_column.size() != address_column.size())
    throw std::invalid_argument("keys and addresses must be equally long");
  OrthogonalJob job =
      make_orthogonal_job(dtype_of(dtype), read_integers(sizes.ptr()), read_integers(strides.ptr()),
                          read_integers(global_shape.ptr()), read_integers(offset.ptr()), gain);
  job.keys.reserve(key_column.size());
  job.data.reserve(key_column.size());
  for (size_t i = 0; i < key_column.size(); ++i) {
    job.keys.push_back(static_cast<uint64_t>(read_integer(key_column[i])));
    job.data.push_back(read_address(address_column[i]));
  }
  return job;
}

// Low-precision weights: of draws of a dtype, or of the float32 values at an address, and then draw
// is None. format: (rows, columns, packed, rule, scale dtype); matrix: (rows, columns); box: as
// MatrixBox.
inline QuantisedJob read_quantised_job(pybind11::handle draw, int64_t dtype, int64_t key,
                                       uintptr_t values, pybind11::handle format, double largest,
                                       pybind11::handle matrix, pybind11::handle box,
                                       uintptr_t payload, uintptr_t scales) {
  const std::vector<int64_t> numbers = read_integers(format.ptr()),
                             shape = read_integers(matrix.ptr()), sides = read_integers(box.ptr());
  if (numbers.size() != 5 || shape.size() != 2 || sides.size() != 6)
    throw std::invalid_argument("format has 5 fields, matrix 2 and box 6");
  if (numbers[3] < 0 || numbers[3] >= kScaleRules || numbers[4] < 0 || numbers[4] >= kScaleDtypes)
    throw std::invalid_argument("there is no such rule or dtype of scales");
  const FloatEnvironment environment;  // of the whole tensor's scale
  QuantisedJob job{{},
                   static_cast<uint64_t>(key),
                   reinterpret_cast<const float*>(values),
                   {numbers[0], numbers[1], numbers[2] != 0, static_cast<ScaleRule>(numbers[3]),
                    static_cast<ScaleDtype>(numbers[4])},
                   whole_scale(static_cast<float>(largest)),
                   shape[0],
                   shape[1],
                   {sides[0], sides[1], sides[2], sides[3], sides[4], sides[5]},
                   reinterpret_cast<uint8_t*>(payload),
                   reinterpret_cast<uint8_t*>(scales)};
  if (!values) job.plan = plan_of(read_draw(draw.ptr()), dtype);
  check_job(job);
  return job;
}

}  // namespace torchinit
