// Kernels read from the text of PTX.
#pragma once

#include <string>
#include <vector>

#include "warp.h"

namespace torchinit::emulator {

struct Parameter {
  size_t offset, size;
};

// What a special register has in each lane.
enum class Special { Tid, NTid, CtaidX, CtaidY, CtaidZ, NctaidX, NctaidY, NctaidZ };

struct Kernel {
  std::string name;
  std::vector<Parameter> parameters;
  size_t parameter_bytes = 0, shared_bytes = 0;
  size_t shared_granule = 16;                 // the least that an instruction touches
  int most_threads = 1024, least_blocks = 0;  // as its launch bounds say
  // A warp's registers, with what no instruction writes behind those that are poisoned.
  size_t register_bytes = 0;
  std::vector<unsigned char> constants;
  std::vector<std::pair<Special, Operand>> specials;
  std::vector<Instruction> code;
  std::vector<std::string> texts;  // of each instruction
};

// Throws Fault for anything that is not known.
std::vector<Kernel> read_ptx(const std::string& text);

}  // namespace torchinit::emulator
