// The Python module of the CUDA fills: addresses, sizes and numbers in, nothing of torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

#include "fill.h"
#include "reflectors.h"

using namespace torchinit;

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA fills. Arguments are not checked against the memory: call torchinit instead.";
  m.def("architectures", &cuda::architectures, "The architectures compiled for.");
  m.def(
      "fill_box",
      [](int distribution, int dtype, double p0, double p1, double p2, double p3, int64_t key,
         uintptr_t data, const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
         const std::vector<int64_t>& shape, const std::vector<int64_t>& start, uintptr_t stream) {
        const double parameters[4] = {p0, p1, p2, p3};
        const Plan plan = make_plan(static_cast<Distribution>(distribution),
                                    static_cast<Dtype>(dtype), parameters);
        cuda::fill(plan, static_cast<uint64_t>(key), make_box(sizes, strides, shape, start),
                   reinterpret_cast<void*>(data), reinterpret_cast<void*>(stream));
      },
      "Queues the fill of a box on a stream of the current device.");
  m.def(
      "fill_reflectors",
      [](int dtype, uintptr_t keys, int64_t matrices, int64_t first, int64_t count, int64_t length,
         uintptr_t vectors, uintptr_t halves, uintptr_t signs, uintptr_t stream) {
        const cpu::ReflectorBlock block = {
            static_cast<Dtype>(dtype),
            reinterpret_cast<const int64_t*>(keys),
            matrices,
            first,
            count,
            length,
            reinterpret_cast<void*>(vectors),
            reinterpret_cast<void*>(halves),
            reinterpret_cast<void*>(signs),
        };
        cuda::fill_reflectors(block, reinterpret_cast<void*>(stream));
      },
      "Queues a block of Householder vectors on a stream of the current device.");
}
