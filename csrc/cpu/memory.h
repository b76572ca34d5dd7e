// Queries and advice about memory to the operating system.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace torchinit::cpu {

// Bytes of the last-level cache; 32 MiB if unknown.
int64_t last_level_cache();

struct Range {
  void* data;
  size_t bytes;
};

// Asks for huge pages wherever a complete one lies within the ranges, so that first touching them
// costs one fault for 2 MiB instead of 4 KiB. Adjacent ranges count as one: allocators put the
// parameters of a model side by side, and few begin at a huge page. Does nothing for small ranges
// or on systems without huge pages. Reorders the ranges.
void advise_huge_pages(std::vector<Range>& ranges);

// Turns advise_huge_pages on or off; it is on by default.
void allow_huge_pages(bool allowed);

// False only if a page of the range is known to be mapped read-only. Nothing is written.
bool is_writable(const void* data, size_t bytes);

}  // namespace torchinit::cpu
