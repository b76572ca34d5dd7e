// Between the threads of fill.cpp and reflectors.cpp and the compilations of the kernels, one an
// instruction set.
#pragma once

#include <cstdint>

#include "../base/platform.h"
#include "../job/box.h"
#include "../job/plan.h"

namespace torchinit::cpu {

// Writes n consecutive elements, of logical indices first, first + 1, ... With streaming, whole
// groups bypass the cache where the alignment allows it.
using Kernel = void (*)(const Plan& plan, uint64_t key, uint64_t first, void* to, int64_t n,
                        bool streaming);

// A box as rows: runs of consecutive logical indices.
struct Rows {
  const Dimension* outer;  // what numbers the rows, the last fastest
  int rank;
  int64_t size;    // elements of a row
  uint64_t first;  // logical index of the first element of the first row
};

// Writes elements `begin` to `end` - 1 of the rows. data: of the box's first element; if packed, of
// element `begin`, which the others follow. Streaming is for long rows alone.
using RowsKernel = void (*)(const Plan& plan, uint64_t key, const Rows& rows, int64_t begin,
                            int64_t end, void* data, bool packed, bool streaming);

// Turns n independent normals, float or double, into a Householder vector; writes half its squared
// norm and the sign that goes with it (math/reflector.h).
using ReflectKernel = void (*)(Dtype dtype, void* vector, int64_t n, void* half_norm, void* sign);

// Rows of q are padded to a multiple of this with zeros.
constexpr int kColumns = 16;

// The first n columns of the product of n reflectors, times signs and gain.
using MultiplyKernel = void (*)(Dtype dtype, const void* vectors, const void* half_norms,
                                const void* signs, double gain, int64_t m, int64_t n, void* q,
                                int64_t row_stride);

// The upper triangle of an (n, n) matrix becomes its inverse; zeros below.
using InvertKernel = void (*)(Dtype dtype, void* matrix, int64_t n);

struct InstructionSet {
  const char* name;
  Kernel fill;
  RowsKernel fill_rows;
  ReflectKernel reflect;
  MultiplyKernel multiply;
  InvertKernel invert;
};

extern const InstructionSet portable_set;
#if TORCHINIT_X86
extern const InstructionSet avx2_set, avx512_set;
#elif TORCHINIT_ARM64
extern const InstructionSet neon_set;
#endif

// The sets this processor runs, fastest first, ended by a null pointer; portable is the last.
const InstructionSet* const* supported_sets();

// The set in use: the fastest, unless one was chosen.
const InstructionSet& active_set();

// False if no supported set has this name; nothing is changed then.
bool choose_set(const char* name);

}  // namespace torchinit::cpu
