// Identifies this compilation of the shared mathematics.
#pragma once

#include "platform.h"

// The namespace of one compilation of the shared mathematics. Each instruction set compiles the
// same headers into a namespace of its own, so that the linker never merges two of them.
#ifndef TORCHINIT_TARGET
#define TORCHINIT_TARGET generic
#endif

// 1 where the target of this compilation has a fused multiply-add instruction.
#ifndef TORCHINIT_HARDWARE_FMA
#define TORCHINIT_HARDWARE_FMA (TORCHINIT_DEVICE_PASS || TORCHINIT_ARM64)
#endif
