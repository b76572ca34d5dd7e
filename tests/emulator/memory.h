// Memory that checks who touches it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "warp.h"

namespace torchinit::emulator {

// A thread, and how many barriers its block has passed.
struct Thread {
  uint32_t launch = 0, block = 0, interval = 0, number = 0;

  bool is_beside(const Thread& other) const {
    return launch == other.launch && block == other.block && interval == other.interval;
  }
  bool may_meet(const Thread& other) const {
    return launch == other.launch &&
           (block != other.block || (interval == other.interval && number != other.number));
  }
};

// Who last wrote and read each granule: two threads may touch the same, one of them writing, only
// in launches that follow each other, or with a barrier of their block between.
class AccessLog {
 public:
  void resize(size_t bytes, size_t granule) {
    granule_ = granule;
    entries_.assign((bytes + granule - 1) / granule, {});
  }
  void clear() { std::fill(entries_.begin(), entries_.end(), Entry{}); }

  void read(size_t at, size_t size, const Thread& thread) {
    for (Entry* entry = first(at); entry != last(at, size); ++entry) {
      if (entry->writer.may_meet(thread)) race("reads what", thread, entry->writer);
      Thread& reader = entry->reader;
      const bool is_same_launch = reader.launch == thread.launch;
      if (is_same_launch && (entry->readers == Blocks || reader.block != thread.block))
        entry->readers = Blocks;
      else if (reader.may_meet(thread))
        entry->readers = Threads;
      else if (!is_same_launch || reader.interval != thread.interval)
        entry->readers = One;
      reader = thread;
    }
  }

  void write(size_t at, size_t size, const Thread& thread) { change(at, size, thread, false); }
  // Atomic: may meet others of its kind.
  void update(size_t at, size_t size, const Thread& thread) { change(at, size, thread, true); }

 private:
  void change(size_t at, size_t size, const Thread& thread, bool is_update) {
    for (Entry* entry = first(at); entry != last(at, size); ++entry) {
      const Thread& reader = entry->reader;
      const bool meets = entry->writer.may_meet(thread);
      if (meets && !(is_update && entry->is_update)) race("writes what", thread, entry->writer);
      const bool is_same_launch = reader.launch == thread.launch;
      const bool is_same_interval = reader.is_beside(thread);
      if (reader.may_meet(thread) || (is_same_launch && entry->readers == Blocks) ||
          (is_same_interval && entry->readers == Threads))
        race("writes what", thread, reader);
      // What this thread has only written before stays so.
      entry->is_update = is_update && (entry->is_update || !entry->writer.is_beside(thread));
      entry->writer = thread;
      if (meets) entry->writer.number = kMany;
    }
  }

  static constexpr uint32_t kMany = 0xffffffffu;  // in place of a thread's number
  enum Readers : uint8_t { One, Threads, Blocks };
  struct Entry {
    Thread writer, reader;
    Readers readers = One;
    bool is_update = false;
  };

  Entry* first(size_t at) { return &entries_[at / granule_]; }
  Entry* last(size_t at, size_t size) { return &entries_[(at + size - 1) / granule_] + 1; }

  [[noreturn]] static void race(const char* does, const Thread& thread, const Thread& other) {
    const std::string who =
        other.number == kMany ? "several threads" : "thread " + std::to_string(other.number);
    throw Fault("a race: thread " + std::to_string(thread.number) + " " + does + " " + who +
                " of block " + std::to_string(other.block) + " touches with no barrier between");
  }

  size_t granule_ = 1;
  std::vector<Entry> entries_;
};

enum class Watch {
  Bounds,   // nothing more
  Once,     // no byte is written twice
  Races,    // AccessLog
  Touched,  // what was written is listed
};

// Global memory: the ranges that kernels may touch.
class GlobalMemory {
 public:
  void add(void* data, size_t size, Watch watch, size_t granule = 4) {
    if (!size) return;
    const uint64_t begin = reinterpret_cast<uint64_t>(data);
    ranges_.push_back({begin, begin + size, watch, {}, {}});
    if (watch == Watch::Once) ranges_.back().writes.assign(size, 0);
    if (watch == Watch::Races) ranges_.back().log.resize(size, granule);
  }
  void clear() {
    ranges_.clear();
    touched_.clear();
    recent_ = 0;
  }

  // Whether every byte of the ranges that are watched for it was written, and the bytes.
  int64_t bytes_written_once() const {
    int64_t written = 0;
    for (const Range& range : ranges_)
      for (const unsigned char byte : range.writes) written += byte;
    return written;
  }
  // Ranges of addresses that were written to, in order.
  std::vector<std::pair<uint64_t, uint64_t>> touched() const {
    auto sorted = touched_;
    std::sort(sorted.begin(), sorted.end());
    std::vector<std::pair<uint64_t, uint64_t>> joined;
    for (const auto& [begin, end] : sorted) {
      if (!joined.empty() && begin < joined.back().second) throw Fault("a byte is written twice");
      if (!joined.empty() && begin == joined.back().second)
        joined.back().second = end;
      else
        joined.emplace_back(begin, end);
    }
    return joined;
  }

  const unsigned char* read(uint64_t address, size_t size, const Thread& thread) {
    Range& range = find(address, size, "a load");
    if (range.watch == Watch::Races) range.log.read(address - range.begin, size, thread);
    return reinterpret_cast<const unsigned char*>(address);
  }
  unsigned char* update(uint64_t address, size_t size, const Thread& thread) {
    Range& range = find(address, size, "an update");
    if (range.watch != Watch::Races) throw Fault("an update of memory whose races nobody watches");
    range.log.update(address - range.begin, size, thread);
    return reinterpret_cast<unsigned char*>(address);
  }
  unsigned char* write(uint64_t address, size_t size, const Thread& thread) {
    Range& range = find(address, size, "a store");
    if (range.watch == Watch::Races) range.log.write(address - range.begin, size, thread);
    if (range.watch == Watch::Touched) touched_.emplace_back(address, address + size);
    if (range.watch == Watch::Once)
      for (size_t i = 0; i < size; ++i)
        if (range.writes[address - range.begin + i]++) throw Fault("a byte is written twice");
    return reinterpret_cast<unsigned char*>(address);
  }

 private:
  struct Range {
    uint64_t begin, end;
    Watch watch;
    std::vector<unsigned char> writes;
    AccessLog log;

    bool has(uint64_t address, size_t size) const {
      return address >= begin && address < end && size <= end - address;
    }
  };

  Range& find(uint64_t address, size_t size, const char* what) {
    if (address % size) throw Fault(std::string(what) + " is misaligned");
    if (recent_ < ranges_.size() && ranges_[recent_].has(address, size)) return ranges_[recent_];
    for (recent_ = 0; recent_ < ranges_.size(); ++recent_)
      if (ranges_[recent_].has(address, size)) return ranges_[recent_];
    throw Fault(std::string(what) + " is out of bounds");
  }

  std::vector<Range> ranges_;
  std::vector<std::pair<uint64_t, uint64_t>> touched_;
  size_t recent_ = 0;
};

// The shared memory of the block that runs: poisoned before it.
class SharedMemory {
 public:
  SharedMemory(size_t bytes, size_t granule) : bytes_(bytes, 0xff) { log_.resize(bytes, granule); }
  void poison() {
    std::fill(bytes_.begin(), bytes_.end(), static_cast<unsigned char>(0xff));
    log_.clear();
  }
  const unsigned char* read(uint64_t at, size_t size, const Thread& thread) {
    check(at, size, "a load");
    log_.read(at, size, thread);
    return &bytes_[at];
  }
  unsigned char* write(uint64_t at, size_t size, const Thread& thread) {
    check(at, size, "a store");
    log_.write(at, size, thread);
    return &bytes_[at];
  }
  unsigned char* update(uint64_t at, size_t size, const Thread& thread) {
    check(at, size, "an update");
    log_.update(at, size, thread);
    return &bytes_[at];
  }

 private:
  void check(uint64_t at, size_t size, const char* what) const {
    if (at % size) throw Fault(std::string(what) + " of shared memory is misaligned");
    if (at > bytes_.size() || size > bytes_.size() - at)
      throw Fault(std::string(what) + " of shared memory is out of bounds");
  }

  std::vector<unsigned char> bytes_;
  AccessLog log_;
};

}  // namespace torchinit::emulator
