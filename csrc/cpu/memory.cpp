#include "memory.h"

#include <algorithm>
#include <atomic>
#include <functional>

#include "../base/platform.h"

#if TORCHINIT_LINUX
#include <sys/mman.h>
#include <unistd.h>

#include <cinttypes>
#include <cstdio>
#include <cstring>
#endif

namespace torchinit::cpu {

#if TORCHINIT_LINUX

int64_t last_level_cache() {
  static const int64_t size = [] {
    const long level3 = sysconf(_SC_LEVEL3_CACHE_SIZE);
    return level3 > 0 ? int64_t{level3} : int64_t{32} << 20;
  }();
  return size;
}

namespace {

std::atomic<bool> huge_pages_allowed{true};

constexpr uintptr_t kSmallPage = uintptr_t{4} << 10;
constexpr uintptr_t kHugePage = uintptr_t{2} << 20;
// Below this size, asking for huge pages costs more than the faults of small pages.
constexpr size_t kLeastForHugePages = size_t{8} << 20;

// Ranges at most this far apart count as side by side: allocators keep a header between them.
constexpr uintptr_t kNeighbours = kSmallPage;

// This is advice: a refusal (shared or file-backed memory, no support) changes nothing. Mappings
// may begin at a huge page (Linux 6.7), with the allocator's header before the data, so the page in
// which the range begins belongs to its huge page.
void advise(uintptr_t first, uintptr_t end) {
  first -= first % kSmallPage;
  const uintptr_t begin = (first + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t stop = end / kHugePage * kHugePage;
  if (begin < stop) (void)madvise(reinterpret_cast<void*>(begin), stop - begin, MADV_HUGEPAGE);
}

// MADV_POPULATE_WRITE (Linux 5.14) faults pages in as a write would, and fails for read-only pages.
// Absent from older headers.
constexpr int kPopulateWrite = 23;

// Whether a part of the range is mapped without the permission to write. Reads the list of all
// mappings, which takes tens to hundreds of microseconds.
bool mapped_read_only(uintptr_t first, uintptr_t end) {
  FILE* maps = std::fopen("/proc/self/maps", "re");
  if (!maps) return false;
  bool read_only = false;
  bool at_begin = true;  // the rest of a line: a file name may make it longer than the buffer
  char text[512];
  while (!read_only && std::fgets(text, sizeof text, maps)) {
    uintptr_t from = 0, to = 0;
    char permissions[5] = {};
    if (at_begin &&
        std::sscanf(text, "%" SCNxPTR "-%" SCNxPTR " %4s", &from, &to, permissions) == 3) {
      if (from >= end) break;  // the mappings are in order
      read_only = to > first && permissions[1] != 'w';
    }
    at_begin = std::strchr(text, '\n') != nullptr;
  }
  std::fclose(maps);
  return read_only;
}

}  // namespace

void advise_huge_pages(std::vector<Range>& ranges) {
  if (!huge_pages_allowed.load(std::memory_order_relaxed)) return;
  std::sort(ranges.begin(), ranges.end(), [](const Range& one, const Range& other) {
    return std::less<>()(one.data, other.data);
  });
  for (size_t i = 0; i < ranges.size();) {
    const uintptr_t first = reinterpret_cast<uintptr_t>(ranges[i].data);
    uintptr_t end = first + ranges[i].bytes;
    for (++i; i < ranges.size(); ++i) {
      const uintptr_t next = reinterpret_cast<uintptr_t>(ranges[i].data);
      if (next > end + kNeighbours) break;
      end = std::max(end, next + ranges[i].bytes);
    }
    if (end - first >= kLeastForHugePages) advise(first, end);
  }
}

void allow_huge_pages(bool allowed) {
  huge_pages_allowed.store(allowed, std::memory_order_relaxed);
}

bool is_writable(const void* data, size_t bytes) {
  static const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  if (bytes == 0) return true;
  const uintptr_t first = reinterpret_cast<uintptr_t>(data) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes + page - 1) / page * page;
  // Faulting in a large range here would cost it its huge pages, and take its faults from the
  // threads. The call also fails on old kernels and for device memory, so a failure alone proves
  // nothing.
  if (bytes < kLeastForHugePages &&
      madvise(reinterpret_cast<void*>(first), end - first, kPopulateWrite) == 0)
    return true;
  return !mapped_read_only(first, end);
}

#else

int64_t last_level_cache() { return int64_t{32} << 20; }
void advise_huge_pages(std::vector<Range>&) {}
void allow_huge_pages(bool) {}
bool is_writable(const void*, size_t) { return true; }

#endif

}  // namespace torchinit::cpu
