// The interface between the threads of fill.cpp and orthogonal.cpp and the compiled kernels, one
// for each instruction set.
#pragma once

#include <cstdint>

#include "../base/platform.h"
#include "../job/box.h"
#include "../job/orthogonal_job.h"
#include "../job/plan.h"
#include "../job/quantised_job.h"

namespace torchinit::cpu {

// Writes n consecutive elements, with logical indices first, first + 1, ... With streaming,
// complete groups bypass the cache if the alignment allows it.
using Kernel = void (*)(const Plan& plan, uint64_t key, uint64_t first, void* to, int64_t n,
                        bool streaming);

// A box as rows: runs of consecutive logical indices.
struct Rows {
  const Dimension* outer;  // the dimensions that number the rows, the last fastest
  int rank;
  int64_t size;    // elements of a row
  uint64_t first;  // logical index of the first element of the first row
};

// Writes elements `begin` to `end` - 1 of the rows. data: the address of the box's first element;
// if packed, of element `begin`, with the others after it. Streaming is only for long rows.
using RowsKernel = void (*)(const Plan& plan, uint64_t key, const Rows& rows, int64_t begin,
                            int64_t end, void* data, bool packed, bool streaming);

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// The kernels of orthogonal matrices. Matrices are panels: rows of kBlock neighbours.
template <class T>
struct BlockKernels {
  // Adds the squares of elements to partial sums (math/reflector.h); returns their total.
  double (*square_sum)(const T* x, int64_t n, double* sums);
  // to(j, i) = from(i, j), times factors(i) if there are any; rows and columns of `from` are
  // multiples of 4.
  void (*turn)(const T* from, int64_t from_stride, T* to, int64_t to_stride, int64_t rows,
               int64_t columns, const T* factors);
  // C += A^T B over k rows of A and B, each element's sum one chain from zero. C has `rows` rows
  // and `columns` columns; more columns, up to kBlock, may be written.
  void (*add_transposed)(const T* a, const T* b, T* c, int rows, int columns, int64_t k);
  // C += A B if adds, else C = A B; A has `rows` rows and k columns.
  void (*multiply)(bool adds, const T* a, const T* b, T* c, int64_t rows, int columns, int k);
  // Replaces the upper triangle of `count` rows by minus its inverse, with zeros below.
  void (*invert)(T* triangle, int count);
};

// Rounds consecutive elements to a dtype of 16 or 8 bits, as fills do.
using RoundKernel = void (*)(Dtype dtype, const float* from, void* to, int64_t count);

// Float32 values that lie in the cache, the rows and columns of some complete blocks or of those at
// the matrix's edge, and where the results go.
struct Tile {
  const BlockFormat& format;
  const WholeScale& whole;
  const float* values;
  int64_t stride, rows, columns;
  // The part whose payload is wanted, in the tile.
  int64_t first_row, end_row, first_column, end_column;
  uint8_t* payload;  // of the part's first element, or null
  int64_t payload_stride;
  uint8_t* scales;       // of the first block, or null
  int64_t scale_stride;  // bytes
};
using QuantiseKernel = void (*)(const Tile& tile);

// The bits of the largest magnitude.
using LargestKernel = uint32_t (*)(const float* values, int64_t count);

struct InstructionSet {
  const char* name;
  Kernel fill;
  RowsKernel fill_rows;
  BlockKernels<float> blocks32;
  BlockKernels<double> blocks64;
  RoundKernel round;
  QuantiseKernel quantise;
  LargestKernel largest;
};

extern const InstructionSet portable_set;
#if TORCHINIT_X86
extern const InstructionSet avx2_set, avx512_set;
#elif TORCHINIT_ARM64
extern const InstructionSet neon_set;
#endif

// The instruction sets of this processor, fastest first, ended by a null pointer; portable is last.
const InstructionSet* const* supported_sets();

// The set in use: the fastest, unless one was chosen.
const InstructionSet& active_set();

// Chooses a set by name; returns false, and changes nothing, if no supported set has this name.
bool choose_set(const char* name);

}  // namespace torchinit::cpu
