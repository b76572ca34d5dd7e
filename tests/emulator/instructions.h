// The instructions of PTX that are known, each by its whole name: "fma.rn.f32" is one, "fma.rn.ftz"
// is none.
#pragma once

#include <string>
#include <unordered_map>
#include <vector>

#include "warp.h"

namespace torchinit::emulator {

constexpr int kAddress = 0;  // in place of a width: 4 or 8 bytes

struct Definition {
  Operation run = nullptr;
  Flow flow = Flow::Next;
  std::vector<int> out{}, in{};  // widths in bytes
  bool is_wider = false;         // registers may be wider than these
  Type type{}, source{};
  int count = 1;
};

// A move from or to a list in braces has "/unpack" or "/pack" behind its name.
const std::unordered_map<std::string, Definition>& instructions();

}  // namespace torchinit::emulator
