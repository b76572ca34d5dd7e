// A thread block as its instructions see it.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "memory.h"

namespace torchinit::emulator {

struct Counts {
  int64_t launches = 0, blocks = 0;
  int64_t instructions = 0;          // of whole warps
  std::array<int64_t, 17> stores{};  // to global memory, by bytes
  std::vector<int64_t> passes;       // of loops that store, by multiprocessor
  std::vector<int64_t> busy;         // instructions, by multiprocessor
};

struct Block {
  GlobalMemory& global;
  SharedMemory& shared;
  const std::vector<unsigned char>& parameters;
  Counts& counts;
  Thread thread;  // its number is that of the lane that runs
};

}  // namespace torchinit::emulator
