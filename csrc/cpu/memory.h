// What the operating system knows of the memory.
#pragma once

#include <cstddef>
#include <cstdint>

namespace torchinit::cpu {

// Bytes of the last-level cache; 32 MiB where the system does not say.
int64_t last_level_cache();

// False only if the first or the last page of the range is known to be mapped read-only. Nothing
// is written.
bool is_writable(const void* data, size_t bytes);

}  // namespace torchinit::cpu
