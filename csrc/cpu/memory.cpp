#include "memory.h"

#include <atomic>

#include "../base/platform.h"

#if TORCHINIT_LINUX
#include <sys/mman.h>
#include <unistd.h>

#include <cinttypes>
#include <cstdio>
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

constexpr uintptr_t kHugePage = uintptr_t{2} << 20;
// Below this the call costs more than the faults.
constexpr size_t kLeastForHugePages = size_t{8} << 20;

// MADV_POPULATE_WRITE (Linux 5.14): faults the page in as a write would, and fails where it may
// not be written. Absent from older headers.
constexpr int kPopulateWrite = 23;

bool mapped_read_only(uintptr_t address) {
  FILE* maps = std::fopen("/proc/self/maps", "re");
  if (!maps) return false;
  bool read_only = false;
  char line[512];
  while (std::fgets(line, sizeof line, maps)) {
    uintptr_t begin = 0, end = 0;
    char permissions[5] = {};
    if (std::sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %4s", &begin, &end, permissions) != 3 ||
        address < begin || address >= end)
      continue;
    read_only = permissions[1] != 'w';
    break;
  }
  std::fclose(maps);
  return read_only;
}

bool page_is_writable(uintptr_t address, uintptr_t page) {
  const uintptr_t start = address / page * page;
  // The call also fails on old kernels and on memory of devices, so a failure proves nothing yet.
  return madvise(reinterpret_cast<void*>(start), page, kPopulateWrite) == 0 ||
         !mapped_read_only(start);
}

}  // namespace

void advise_huge_pages(void* data, size_t bytes) {
  if (bytes < kLeastForHugePages || !huge_pages_allowed.load(std::memory_order_relaxed)) return;
  const uintptr_t first = reinterpret_cast<uintptr_t>(data);
  const uintptr_t begin = (first + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (first + bytes) / kHugePage * kHugePage;
  // It is advice: a refusal (shared or file-backed memory, no support) changes nothing.
  if (begin < end) (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
}

void allow_huge_pages(bool allowed) {
  huge_pages_allowed.store(allowed, std::memory_order_relaxed);
}

bool is_writable(const void* data, size_t bytes) {
  static const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t first = reinterpret_cast<uintptr_t>(data);
  if (bytes == 0) return true;
  const uintptr_t last = first + bytes - 1;
  return page_is_writable(first, page) &&
         (first / page == last / page || page_is_writable(last, page));
}

#else

int64_t last_level_cache() { return int64_t{32} << 20; }
void advise_huge_pages(void*, size_t) {}
void allow_huge_pages(bool) {}
bool is_writable(const void*, size_t) { return true; }

#endif

}  // namespace torchinit::cpu
