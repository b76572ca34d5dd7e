// The Python module of the CUDA fills. It takes addresses, sizes and numbers, nothing of torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

#include "../cuda/device.h"
#include "../cuda/fill.h"
#include "../cuda/memory.h"
#include "../cuda/orthogonal.h"
#include "../cuda/quantised.h"
#include "read_jobs.h"

PYBIND11_MODULE(_cuda, m) {
  using namespace torchinit;
  m.doc() = "CUDA fills. Arguments are not checked against the memory: call torchinit instead.";
  m.def("architectures", &cuda::architectures, "The architectures compiled for.");
  m.def("why_no_kernels", &cuda::why_no_kernels,
        "Why no kernel can run on the current device; empty if they can.");
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
      "orthogonal_memory",
      [](int64_t dtype, const pybind11::handle& keys, const pybind11::handle& addresses,
         const pybind11::handle& sizes, const pybind11::handle& strides,
         const pybind11::handle& global_shape, const pybind11::handle& offset, double gain) {
        return cuda::orthogonal_memory(read_orthogonal_job(dtype, keys, addresses, sizes, strides,
                                                           global_shape, offset, gain));
      },
      "Bytes of device memory that fill_orthogonal takes besides.");
  m.def(
      "fill_orthogonal",
      [](int64_t dtype, const pybind11::handle& keys, const pybind11::handle& addresses,
         const pybind11::handle& sizes, const pybind11::handle& strides,
         const pybind11::handle& global_shape, const pybind11::handle& offset, double gain,
         uintptr_t memory, uintptr_t stream) {
        const OrthogonalJob job =
            read_orthogonal_job(dtype, keys, addresses, sizes, strides, global_shape, offset, gain);
        const WithoutLock released;
        cuda::fill_orthogonal(job, reinterpret_cast<void*>(memory),
                              reinterpret_cast<void*>(stream));
      },
      "Queues orthogonal matrices, as the CPU module fills them, on a stream of the current "
      "device.");
  m.def(
      "fill_quantised",
      [](const pybind11::handle& draw, int64_t dtype, int64_t key, uintptr_t values,
         const pybind11::handle& format, double largest, const pybind11::handle& matrix,
         const pybind11::handle& box, uintptr_t payload, uintptr_t scales, uintptr_t stream) {
        const QuantisedJob job = read_quantised_job(draw, dtype, key, values, format, largest,
                                                    matrix, box, payload, scales);
        const WithoutLock released;
        cuda::fill_quantised(job, reinterpret_cast<void*>(stream));
      },
      "Queues low-precision weights, as the CPU module fills them, on a stream of the current "
      "device.");
  m.def(
      "largest_magnitude",
      [](const pybind11::handle& draw, int64_t dtype, int64_t key, int64_t count, uintptr_t address,
         uintptr_t stream) {
        const Plan plan = plan_of(read_draw(draw.ptr()), dtype);
        checked_count(count);
        const WithoutLock released;
        cuda::largest_magnitude(plan, static_cast<uint64_t>(key), count,
                                reinterpret_cast<void*>(address), reinterpret_cast<void*>(stream));
      },
      "Queues the search for the largest magnitude of `count` float32 or bfloat16 values, logical "
      "indices from 0: raises the float32 at the address, which is not negative, to it.");
}
