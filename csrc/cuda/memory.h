// Queries about memory to the driver.
#pragma once

namespace torchinit::cuda {

// Whether memory that the device can write is host memory: managed, or pinned and mapped.
bool is_host_backed(const void* data);

}  // namespace torchinit::cuda
