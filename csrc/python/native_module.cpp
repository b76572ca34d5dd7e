// The Python module. It takes addresses, sizes and numbers, nothing of torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "../base/stream_version.h"
#include "../cpu/fill.h"
#include "../cpu/kernels.h"
#include "../cpu/memory.h"
#include "../cpu/orthogonal.h"
#include "../cpu/parallel.h"
#include "../cpu/quantised.h"
#include "../job/plan.h"
#include "../math/normal_cdf.h"
#include "../math/philox.h"
#include "../simd/scalar.h"
#include "fill_one.h"
#include "quick_fill.h"
#include "read_jobs.h"

namespace py = pybind11;

PYBIND11_MODULE(_native, m) {
  using namespace torchinit;
  m.doc() = "Native fills. Arguments are not checked against the memory: call torchinit instead.";

  m.attr("stream_version") = kStreamVersion;

  py::enum_<Distribution> distributions(m, "Distribution", "Kinds of fill.");
  for (int i = 0; i < kDistributions; ++i)
    distributions.value(kDistributionNames[i], static_cast<Distribution>(i));
  py::enum_<Dtype> dtypes(m, "Dtype", "Element types.");
  for (int i = 0; i < kDtypes; ++i) dtypes.value(kDtypeNames[i], static_cast<Dtype>(i));

  add_quick_fill(m);

  // With Python's vectorcall interface, ten arguments would take 0.10 us less, of 0.21 us.
  m.def(
      "fill",
      [](int64_t distribution, int64_t dtype, double p0, double p1, double p2, double p3,
         int64_t key, uintptr_t address, int64_t count, int threads) {
        fill_one({distribution, {p0, p1, p2, p3}}, dtype, key, address,
                 flat_box(checked_count(count)), threads);
      },
      "Fills `count` contiguous elements, logical indices from 0.");
  m.def(
      "fill_box",
      [](int64_t distribution, int64_t dtype, double p0, double p1, double p2, double p3,
         int64_t key, uintptr_t address, const std::vector<int64_t>& sizes,
         const std::vector<int64_t>& strides, const std::vector<int64_t>& global_shape,
         const std::vector<int64_t>& offset, int threads) {
        fill_one({distribution, {p0, p1, p2, p3}}, dtype, key, address,
                 make_box(sizes, strides, global_shape, offset), threads);
      },
      "Fills the box at `offset` of a logical tensor of `global_shape`.");
  m.def(
      "fill_list",
      [](const py::handle& draws, const py::handle& dtypes, const py::handle& keys,
         const py::handle& addresses, const py::handle& boxes, int threads) {
        std::vector<Job> jobs = read_jobs(draws, dtypes, keys, addresses, boxes);
        const WithoutLock released;
        fill_in_order(std::move(jobs), [&](const auto& some) { cpu::fill(some, threads); });
      },
      "Fills many boxes, given by columns: draws are (distribution, p0, p1, p2, p3); boxes a "
      "number "
      "of contiguous elements from logical index 0 on, or (sizes, strides, global_shape, offset). "
      "Boxes that overlap in memory are filled in order.");
  m.def(
      "transform",
      [](int64_t distribution, int64_t dtype, double p0, double p1, double p2, double p3) {
        return name_of(plan_of({distribution, {p0, p1, p2, p3}}, dtype).transform);
      },
      "The name of the transform that a fill takes.");
  m.def(
      "fill_orthogonal",
      [](int64_t dtype, const py::handle& keys, const py::handle& addresses,
         const py::handle& sizes, const py::handle& strides, const py::handle& global_shape,
         const py::handle& offset, double gain, int threads) {
        OrthogonalJob job =
            read_orthogonal_job(dtype, keys, addresses, sizes, strides, global_shape, offset, gain);
        const WithoutLock released;
        cpu::fill_orthogonal(std::move(job), threads);
      },
      "Fills the box at `offset` of orthogonal matrices of `global_shape`, one for each key.");
  m.def(
      "fill_quantised",
      [](const py::handle& draw, int64_t dtype, int64_t key, uintptr_t values,
         const py::handle& format, double largest, const py::handle& matrix, const py::handle& box,
         uintptr_t payload, uintptr_t scales, int threads) {
        const QuantisedJob job = read_quantised_job(draw, dtype, key, values, format, largest,
                                                    matrix, box, payload, scales);
        const WithoutLock released;
        cpu::fill_quantised(job, threads);
      },
      "Fills a box of low-precision weights, and the scales of the blocks that it touches.");
  m.def(
      "largest_magnitude",
      [](const py::handle& draw, int64_t dtype, int64_t key, int64_t count, int threads) {
        const Plan plan = plan_of(read_draw(draw.ptr()), dtype);
        checked_count(count);
        const WithoutLock released;
        return cpu::largest_magnitude(plan, static_cast<uint64_t>(key), count, threads);
      },
      "The largest magnitude of `count` float32 or bfloat16 values, logical indices from 0.");
  m.def(
      "is_writable",
      [](uintptr_t data, size_t bytes) {
        return cpu::is_writable(reinterpret_cast<void*>(data), bytes);
      },
      "False if the memory is mapped read-only.");
  m.def(
      "philox",
      [](std::array<uint64_t, 4> counter, uint64_t key) {
        using L = TORCHINIT_TARGET::ScalarLanes;
        uint64_t counters[1][4] = {{counter[0], counter[1], counter[2], counter[3]}};
        TORCHINIT_TARGET::philox_rounds<L, 0, 10, 1>(counters, TORCHINIT_TARGET::round_keys(key));
        std::copy(counters[0], counters[0] + 4, counter.begin());
        for (uint64_t& word : counter) word &= 0xffffffffu;
        return counter;
      },
      "The four words of any counter, for the published known answers.");
  m.def("is_forked", &cpu::is_forked,
        "Whether this process was forked from one that had loaded this module. Everything runs on "
        "one thread then, because the others are not there.");
  m.def("allow_huge_pages", &cpu::allow_huge_pages,
        "Whether large fills ask for huge pages (they do, until told otherwise).");
  m.def("normal_cdf", &normal_cdf, "The normal CDF that the bounds of fills are prepared with.");
  m.def("instruction_set", [] { return std::string(cpu::active_set().name); });
  m.def("choose_instruction_set",
        [](const std::string& name) { return cpu::choose_set(name.c_str()); });
  m.def("instruction_sets", [] {
    std::vector<std::string> names;
    for (auto set = cpu::supported_sets(); *set; ++set) names.emplace_back((*set)->name);
    return names;
  });
}
