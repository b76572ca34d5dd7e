// What the operating system knows of the memory.
#pragma once

#include <cstddef>
#include <cstdint>

namespace torchinit::cpu {

// Bytes of the last-level cache; 32 MiB where the system does not say.
int64_t last_level_cache();

// Asks for huge pages behind the whole ones within the range, so that first touching them costs a
// fault for 2 MiB and not for 4 KiB. Small ranges, and systems that have none, are left alone.
void advise_huge_pages(void* data, size_t bytes);

// Whether advise_huge_pages does anything: it does until told otherwise.
void allow_huge_pages(bool allowed);

// False only if a page of the range is known to be mapped read-only. Nothing is written.
bool is_writable(const void* data, size_t bytes);

}  // namespace torchinit::cpu
