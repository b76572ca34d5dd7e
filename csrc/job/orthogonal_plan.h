// The order in which a matrix is formed with little memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace torchinit {

// Blocks that are made together, and the panels of columns that go through them.
struct Wave {
  int64_t block, end_block;
  int64_t panel, end_panel;
  bool is_last;  // of these panels
};

struct Waves {
  std::vector<Wave> list;
  int64_t most = 0;  // memory taken by the blocks of one wave
};

// Takes panels `panel` to `end_panel` - 1, a number at a time, from the last on; and blocks from
// the last that the panels need on, each of size(block), as many together as fit.
template <class Size>
Waves plan_waves(int64_t panel, int64_t end_panel, int64_t panels, int64_t room, const Size& size) {
  Waves waves;
  for (int64_t end = end_panel; end > panel; end -= panels) {
    for (int64_t block = end; block > 0;) {
      const int64_t end_block = block;
      int64_t used = 0;
      while (block > 0 && (block == end_block || used + size(block - 1) <= room))
        used += size(--block);
      waves.most = std::max(waves.most, used);
      waves.list.push_back({block, end_block, std::max(panel, end - panels), end, block == 0});
    }
  }
  return waves;
}

}  // namespace torchinit
