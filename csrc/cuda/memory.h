// What the driver knows of the memory.
#pragma once

namespace torchinit::cuda {

// Whether memory that the device can write to is the host's: managed, or pinned and mapped.
bool is_host_backed(const void* data);

}  // namespace torchinit::cuda
