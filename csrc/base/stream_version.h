// The version of all number streams (docs/streams.md). Increase it with any change of a number,
// here, in src/torchinit/version.py and in tests/data/golden.csv.
#pragma once

namespace torchinit {

constexpr int kStreamVersion = 2;

}  // namespace torchinit
