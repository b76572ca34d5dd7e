// The Python module of the CUDA fills: addresses, sizes and numbers in, nothing of torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

#include "../cuda/fill.h"
#include "../cuda/memory.h"
#include "../cuda/reflectors.h"
#include "read_jobs.h"

PYBIND11_MODULE(_cuda, m) {
  using namespace torchinit;
  m.doc() = "CUDA fills. Arguments are not checked against the memory: call torchinit instead.";
  m.def("architectures", &cuda::architectures, "The architectures compiled for.");
  m.def(
      "fill_list",
      [](const pybind11::handle& draws, const pybind11::handle& dtypes,
         const pybind11::handle& keys, const pybind11::handle& addresses,
         const pybind11::handle& boxes, uintptr_t stream) {
        std::vector<Job> jobs = read_jobs(draws, dtypes, keys, addresses, boxes);
        const WithoutLock released;
        fill_in_order(std::move(jobs),
                      [&](const auto& some) { cuda::fill(some, reinterpret_cast<void*>(stream)); });
      },
      "Queues fills, given by columns as for the CPU module's fill_list, on a stream of the "
      "current "
      "device.");
  m.def(
      "is_host_backed",
      [](uintptr_t data) { return cuda::is_host_backed(reinterpret_cast<const void*>(data)); },
      "Whether memory of the device is the host's: managed, or pinned and mapped.");
  m.def(
      "fill_reflectors",
      [](int dtype, uintptr_t keys, int64_t matrices, int64_t first, int64_t count, int64_t length,
         uintptr_t vectors, uintptr_t half_norms, uintptr_t signs, uintptr_t stream) {
        const ReflectorBlock block = {
            static_cast<Dtype>(dtype),
            reinterpret_cast<const int64_t*>(keys),
            matrices,
            first,
            count,
            length,
            reinterpret_cast<void*>(vectors),
            reinterpret_cast<void*>(half_norms),
            reinterpret_cast<void*>(signs),
        };
        cuda::fill_reflectors(block, reinterpret_cast<void*>(stream));
      },
      "Queues a block of Householder vectors on a stream of the current device.");
}
