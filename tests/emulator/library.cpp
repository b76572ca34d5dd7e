// The emulated device for test_instructions.py.
#include "instructions.h"
#include "machine.h"

using namespace torchinit::emulator;

namespace {
std::string said;
}

extern "C" {

// The names of all instructions that are known, one a line.
const char* known_instructions() {
  said.clear();
  for (const auto& [name, definition] : instructions()) said += name + "\n";
  return said.c_str();
}

// Runs the first kernel of a text of PTX, whose parameters are where `parameters` says; `ranges` of
// memory are what it may touch, watched for races. Returns what was wrong, if anything.
const char* run_ptx(const char* text, int blocks, int threads, void** parameters, void** ranges,
                    const size_t* sizes, int count) {
  said.clear();
  try {
    Machine machine;
    machine.read(text);
    for (int i = 0; i < count; ++i) machine.global.add(ranges[i], sizes[i], Watch::Races, 1);
    machine.launch(machine.kernels().front(), {blocks, 1, 1}, {threads, 1, 1}, parameters, 0);
  } catch (const Fault& fault) {
    said = fault.what();
  }
  return said.c_str();
}

}  // extern "C"
