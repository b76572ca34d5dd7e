// What the operating system knows of the memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace torchinit::cpu {

// Bytes of the last-level cache; 32 MiB where the system does not say.
int64_t last_level_cache();

struct Range {
  void* data;
  size_t bytes;
};

// Asks for huge pages behind the whole ones within the ranges, so that first touching them costs a
// fault for 2 MiB and not for 4 KiB. Ranges that lie next to each other count as one: allocators
// put the parameters of a model side by side, and few of them begin where a huge page does. Small
// ones, and systems that have no huge pages, are left alone. The order of the ranges changes.
void advise_huge_pages(std::vector<Range>& ranges);

// Whether advise_huge_pages does anything: it does until told otherwise.
void allow_huge_pages(bool allowed);

// False only if a page of the range is known to be mapped read-only. Nothing is written.
bool is_writable(const void* data, size_t bytes);

}  // namespace torchinit::cpu
