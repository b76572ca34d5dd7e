#include "machine.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace torchinit::emulator {
namespace {

// What every device of compute capability 8.0 and more can take.
constexpr int64_t kMostBlocksX = 0x7fffffff, kMostBlocksYZ = 65535;
constexpr size_t kMostShared = 48 << 10, kMostParameters = 4096;

// Where the lanes of a warp are between two barriers.
class WarpRun {
 public:
  WarpRun(const Kernel& kernel, Warp& warp) : kernel_(kernel), code_(kernel.code), warp_(warp) {}

  // Runs until every lane has returned or waits at a barrier.
  void run() {
    if (at_barrier_) pass_barrier();
    for (uint32_t lanes = least_running(); lanes; lanes = least_running()) run_together(lanes);
    if (at_barrier_ == kAllLanes) return;
    if (at_barrier_) fail("some threads of a warp wait at a barrier, others do not");
    if (running_) fail("some threads of a warp wait at a shuffle, others do not");
  }

  bool is_done() const { return running_ == 0; }
  int barrier() const { return counters_[0]; }

 private:
  bool is_lane(uint32_t lanes, int lane) const { return lanes >> lane & 1; }

  // The lanes whose next instruction is the first in the code: those behind wait for them.
  uint32_t least_running() {
    const uint32_t candidates = running_ & ~waiting_ & ~at_barrier_;
    int least = std::numeric_limits<int>::max();
    join_ = least;
    uint32_t lanes = 0;
    for (int lane = 0; lane < kLanes; ++lane) {
      if (!is_lane(candidates, lane)) continue;
      const int counter = counters_[static_cast<size_t>(lane)];
      if (counter < least) {
        join_ = least;
        least = counter;
        lanes = 0;
      } else if (counter > least) {
        join_ = std::min(join_, counter);
      }
      if (counter == least) lanes |= 1u << lane;
    }
    return lanes;
  }

  // Runs lanes up to where they part or others join them.
  void run_together(uint32_t lanes) {
    int counter = counters_[static_cast<size_t>(__builtin_ctz(lanes))];
    while (counter < join_) {
      const Instruction& instruction = code_[static_cast<size_t>(counter)];
      counter_ = counter;
      ++warp_.block->counts.instructions;
      uint32_t active = lanes;
      if (instruction.is_predicated) active = chosen(instruction, lanes);
      if (instruction.ends_pass && warp_.first_thread == 0) ++passes;
      switch (instruction.flow) {
        case Flow::Next:
          if (active) instruction.run(warp_, instruction, active);
          ++counter;
          break;
        case Flow::UniformBranch:
          if (active && active != lanes) fail("a uniform branch is taken by some lanes only");
          [[fallthrough]];
        case Flow::Branch:
          if (active == lanes) {
            counter = instruction.target;
          } else if (!active) {
            ++counter;
          } else {
            set(active, instruction.target);
            set(lanes & ~active, counter + 1);
            return;
          }
          break;
        case Flow::Return:
          running_ &= ~active;
          set(lanes & ~active, counter + 1);
          return;
        case Flow::Barrier:
          if (!active) {
            ++counter;
            break;
          }
          if (active != lanes) fail("a barrier is for some lanes only");
          set(lanes, counter);
          at_barrier_ |= lanes;
          return;
        case Flow::Shuffle:
          if (active != lanes) fail("a shuffle is for some lanes only");
          set(lanes, counter);
          shuffle(instruction, lanes);
          return;
      }
    }
    set(lanes, counter);
  }

  uint32_t chosen(const Instruction& instruction, uint32_t lanes) {
    // As bytes: lanes that do not run may have poison.
    const unsigned char* const predicate = warp_.lanes<unsigned char>(instruction.predicate);
    uint32_t chosen = 0;
    for (int lane = 0; lane < kLanes; ++lane) chosen |= (predicate[lane] & 1u) << lane;
    return (instruction.is_negated ? ~chosen : chosen) & lanes;
  }

  void set(uint32_t lanes, int counter) {
    for_lanes(lanes, [&](int lane) { counters_[static_cast<size_t>(lane)] = counter; });
  }

  // Lanes wait at a shuffle until all that it names are there.
  void shuffle(const Instruction& instruction, uint32_t lanes) {
    waiting_ |= lanes;
    const int counter = counter_;
    const uint32_t* const named = warp_.lanes<uint32_t>(instruction.in[3]);
    const uint32_t mask = named[__builtin_ctz(lanes)];
    uint32_t there = 0;
    for (int lane = 0; lane < kLanes; ++lane)
      if (is_lane(waiting_, lane) && counters_[static_cast<size_t>(lane)] == counter)
        there |= 1u << lane;
    for_lanes(there, [&](int lane) {
      if (named[lane] != mask) fail("the lanes of a shuffle name different lanes");
    });
    if (there & ~mask) fail("a lane is at a shuffle that does not name it");
    if (there != mask) return;
    instruction.run(warp_, instruction, mask);
    waiting_ &= ~mask;
    set(mask, counter + 1);
  }

  void pass_barrier() {
    set(at_barrier_, barrier() + 1);
    at_barrier_ = 0;
  }

  [[noreturn]] static void fail(const char* what) { throw Fault(what); }

 public:
  int64_t passes = 0;
  const std::string& text() const { return kernel_.texts[static_cast<size_t>(counter_)]; }

 private:
  const Kernel& kernel_;
  const std::vector<Instruction>& code_;
  Warp& warp_;
  std::array<int, kLanes> counters_{};
  uint32_t running_ = kAllLanes, waiting_ = 0, at_barrier_ = 0;
  int join_ = 0, counter_ = 0;
};

}  // namespace

Machine::Machine() = default;

void Machine::read(const std::string& ptx) {
  for (Kernel& kernel : read_ptx(ptx)) {
    kernels_.push_back(std::move(kernel));
    if (!by_name_.emplace(kernels_.back().name, &kernels_.back()).second)
      throw Fault("two kernels of one name: " + kernels_.back().name);
  }
}

const Kernel& Machine::kernel(const std::string& name) const {
  const auto found = by_name_.find(name);
  if (found == by_name_.end()) throw Fault("no PTX has the kernel " + name);
  return *found->second;
}

void Machine::check_launch(const Kernel& kernel, Grid grid, Grid threads,
                           size_t dynamic_shared) const {
  if (grid.x < 1 || grid.y < 1 || grid.z < 1) throw Fault("a launch of no blocks");
  if (grid.x > kMostBlocksX || grid.y > kMostBlocksYZ || grid.z > kMostBlocksYZ)
    throw Fault("a launch of too many blocks");
  if (threads.y != 1 || threads.z != 1 || threads.x % kLanes)
    throw Fault("a block that is not of whole warps in one dimension");
  if (threads.x < 1 || threads.x > kernel.most_threads)
    throw Fault("a block of more threads than the launch bounds");
  if (dynamic_shared + kernel.shared_bytes > kMostShared) throw Fault("too much shared memory");
  if (dynamic_shared) throw Fault("dynamic shared memory is not known here");
  if (kernel.parameter_bytes > kMostParameters) throw Fault("too many bytes of parameters");
}

void Machine::make_warps(const Kernel& kernel, Grid grid, int threads) {
  const size_t warps = static_cast<size_t>(threads) / kLanes;
  if (of_warps_ != &kernel || warps_.size() != warps) {
    warps_.assign(warps, {});
    for (Warp& warp : warps_) {
      warp.registers.resize((kernel.register_bytes + kernel.constants.size()) / 8 + 1);
      std::copy(kernel.constants.begin(), kernel.constants.end(),
                reinterpret_cast<unsigned char*>(warp.registers.data()) + kernel.register_bytes);
    }
    of_warps_ = &kernel;
  }
  for (size_t number = 0; number < warps; ++number) {
    Warp& warp = warps_[number];
    warp.first_thread = static_cast<int>(number) * kLanes;
    for (const auto& [special, operand] : kernel.specials)
      for (int lane = 0; lane < kLanes; ++lane) {
        const int64_t value = special == Special::Tid       ? warp.first_thread + lane
                              : special == Special::NTid    ? threads
                              : special == Special::NctaidX ? grid.x
                              : special == Special::NctaidY ? grid.y
                                                            : grid.z;
        warp.put(operand, lane, value);
      }
  }
}

void Machine::run_block(const Kernel& kernel, Block& block) {
  std::vector<WarpRun> runs;
  for (Warp& warp : warps_) {
    warp.block = &block;
    std::memset(warp.registers.data(), 0xcd, kernel.register_bytes);
    runs.emplace_back(kernel, warp);
  }
  const int64_t before = counts.instructions;
  for (bool is_done = false; !is_done; ++block.thread.interval) {
    for (WarpRun& run : runs) {
      try {
        run.run();
      } catch (const Fault& fault) {
        throw Fault(std::string(fault.what()) + " (block " + std::to_string(block.thread.block) +
                    ", `" + run.text() + "`, " + kernel.name + ")");
      }
    }
    is_done = runs[0].is_done();
    for (const WarpRun& run : runs)
      if (run.is_done() != is_done || (!is_done && run.barrier() != runs[0].barrier()))
        throw Fault("warps of a block wait at different barriers (" + kernel.name + ")");
  }
  const size_t multiprocessor =
      static_cast<size_t>(block.thread.block) % static_cast<size_t>(settings.multiprocessors);
  counts.passes[multiprocessor] += runs[0].passes;
  counts.busy[multiprocessor] += counts.instructions - before;
}

void Machine::launch(const Kernel& kernel, Grid grid, Grid threads, void** parameters,
                     size_t dynamic_shared) {
  check_launch(kernel, grid, threads, dynamic_shared);
  std::vector<unsigned char> copied(kernel.parameter_bytes);
  for (size_t i = 0; i < kernel.parameters.size(); ++i)
    std::memcpy(&copied[kernel.parameters[i].offset], parameters[i], kernel.parameters[i].size);
  make_warps(kernel, grid, static_cast<int>(threads.x));
  counts.passes.resize(static_cast<size_t>(settings.multiprocessors));
  counts.busy.resize(static_cast<size_t>(settings.multiprocessors));

  SharedMemory shared(kernel.shared_bytes, kernel.shared_granule);
  const uint32_t number = static_cast<uint32_t>(++counts.launches);
  const int64_t all = grid.x * grid.y * grid.z;
  std::vector<int64_t> chosen;
  if (settings.sample) chosen = settings.sample(all);
  const int64_t count = settings.sample ? static_cast<int64_t>(chosen.size()) : all;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t place = settings.sample ? chosen[static_cast<size_t>(i)] : i;
    ++counts.blocks;
    shared.poison();
    for (Warp& warp : warps_)
      for (const auto& [special, operand] : kernel.specials) {
        const int64_t value = special == Special::CtaidX   ? place % grid.x
                              : special == Special::CtaidY ? place / grid.x % grid.y
                                                           : place / grid.x / grid.y;
        if (special == Special::CtaidX || special == Special::CtaidY || special == Special::CtaidZ)
          for (int lane = 0; lane < kLanes; ++lane) warp.put(operand, lane, value);
      }
    Block block{global, shared, copied, counts, {number, static_cast<uint32_t>(place), 0, 0}};
    run_block(kernel, block);
  }
}

}  // namespace torchinit::emulator
