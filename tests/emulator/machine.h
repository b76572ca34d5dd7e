// A GPU that runs kernels block by block and warp by warp, and stops at whatever must not be.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <string>
#include <unordered_map>
#include <vector>

#include "block.h"
#include "ptx.h"

namespace torchinit::emulator {

// What is pretended.
struct Settings {
  int multiprocessors = 3;
  int blocks_a_multiprocessor = 2;  // that fit, of a kernel whose launch bounds say nothing
  // The blocks of a grid that run; all where there is none.
  std::function<std::vector<int64_t>(int64_t)> sample;
};

struct Grid {
  int64_t x, y, z;
};

class Machine {
 public:
  GlobalMemory global;
  Settings settings;
  Counts counts;

  Machine();
  // Adds the kernels of a file's text.
  void read(const std::string& ptx);
  const std::list<Kernel>& kernels() const { return kernels_; }
  // Throws if there is none of this name.
  const Kernel& kernel(const std::string& name) const;
  // As a launch does: every parameter is copied from where it is.
  void launch(const Kernel& kernel, Grid grid, Grid threads, void** parameters,
              size_t dynamic_shared);

 private:
  void check_launch(const Kernel& kernel, Grid grid, Grid threads, size_t dynamic_shared) const;
  void make_warps(const Kernel& kernel, Grid grid, int threads);
  void run_block(const Kernel& kernel, Block& block);

  std::list<Kernel> kernels_;
  std::unordered_map<std::string, const Kernel*> by_name_;
  const Kernel* of_warps_ = nullptr;  // what the warps have registers and constants for
  std::vector<Warp> warps_;
};

}  // namespace torchinit::emulator
