// Runs every kernel on every instruction set of this machine, for the sanitisers to watch:
// all transforms and dtypes, sizes around every boundary, misaligned memory, boxes and layouts.
// Memory is allocated to the byte, so that a stray store is an error. Prints the number of fills.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "../../csrc/cpu/fill.h"
#include "../../csrc/cpu/kernels.h"
#include "../../csrc/cpu/orthogonal.h"
#include "../../csrc/cpu/quantised.h"
#include "../../csrc/job/job.h"
#include "../../csrc/job/plan.h"
#include "../../csrc/simd/scalar.h"
#include "cases.h"

namespace {

using namespace torchinit;

using tests::Case;

long fills = 0;

[[noreturn]] void fail(const char* what, const Case& c, Dtype dtype, int64_t size) {
  std::fprintf(stderr, "%s: case %s dtype %d size %lld on %s\n", what, c.name.c_str(),
               static_cast<int>(dtype), static_cast<long long>(size), cpu::active_set().name);
  std::exit(1);
}

// A fill of `size` elements `offset` bytes past an aligned place, byte-exact.
std::vector<unsigned char> filled(const Plan& plan, uint64_t key, uint64_t first, int64_t size,
                                  size_t offset, bool streaming) {
  const size_t bytes = static_cast<size_t>(size * element_size(plan.dtype));
  void* memory = nullptr;
  if (posix_memalign(&memory, 64, bytes + offset) != 0) std::abort();
  std::unique_ptr<void, decltype(&std::free)> owner(memory, &std::free);
  unsigned char* to = static_cast<unsigned char*>(memory) + offset;
  cpu::active_set().fill(plan, key, first, to, size, streaming);
  ++fills;
  return {to, to + bytes};
}

// The multiply-add of processors without one, where a second rounding would show: sums within a
// sliver of the middle between two floats.
void check_fma() {
  uint64_t state = 1;
  for (int i = 0; i < 2000000; ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    const float c = 1.0f + static_cast<float>(state >> 58) * 0x1p-23f;
    // a b = (1 + e) 2^-24, half a unit in the last place of c and a little more or less.
    const float e = static_cast<float>(static_cast<int>(state >> 40 & 15) - 8) * 0x1p-23f;
    const float a = (1.0f + e) * 0x1p-12f, b = (1.0f - e) * 0x1p-12f;
    for (const float sign : {1.0f, -1.0f}) {
      if (TORCHINIT_TARGET::ScalarLanes::fma(sign * a, b, c) == std::fma(sign * a, b, c)) continue;
      std::fprintf(stderr, "fma(%a, %a, %a) is rounded twice\n", sign * a, b, c);
      std::exit(1);
    }
  }
}

void run_sizes(const Case& c, Dtype dtype) {
  const Plan plan = c.plan(dtype);
  const size_t element = static_cast<size_t>(element_size(dtype));
  for (const uint64_t first : {uint64_t{0}, uint64_t{5}, (uint64_t{1} << 34) - 3}) {
    for (int64_t size : {0, 1, 3, 4, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 257}) {
      const auto expected = filled(plan, 42, first, size, 0, false);
      for (const size_t offset : {element, 3 * element, 16 * element}) {
        for (const bool streaming : {false, true}) {
          if (filled(plan, 42, first, size, offset, streaming) != expected)
            fail("alignment or streaming matters", c, dtype, size);
        }
      }
    }
  }
}

void run_boxes(const Case& c, Dtype dtype) {
  const Plan plan = c.plan(dtype);
  const int64_t element = element_size(dtype);
  // A whole of 9 x 70 x 11, a box of 4 x 60 x 5 at (3, 8, 2), laid out last dimension first.
  const Box whole = flat_box(9 * 70 * 11);
  std::vector<unsigned char> all(static_cast<size_t>(whole.count * element));
  std::vector<unsigned char> part(static_cast<size_t>(4 * 60 * 5 * element));
  for (const int threads : {1, 3}) {
    cpu::fill(plan, 7, whole, all.data(), threads);
    cpu::fill(plan, 7, make_box({4, 60, 5}, {1, 4, 240}, {9, 70, 11}, {3, 8, 2}), part.data(),
              threads);
    fills += 2;
    for (int64_t i = 0; i < 4; ++i)
      for (int64_t j = 0; j < 60; ++j)
        for (int64_t k = 0; k < 5; ++k)
          if (std::memcmp(
                  &part[static_cast<size_t>((i + 4 * j + 240 * k) * element)],
                  &all[static_cast<size_t>((((3 + i) * 70 + 8 + j) * 11 + 2 + k) * element)],
                  static_cast<size_t>(element)) != 0)
            fail("a box differs from the whole", c, dtype, i);
  }
}

// A box of rows (the last dimension) against fills of each row by itself; memory between the rows
// must keep what it had. Also elements begin to end of it alone, as threads take them.
void check_rows(const Case& c, Dtype dtype, const Box& box, int threads) {
  const Plan plan = c.plan(dtype);
  const int64_t element = element_size(dtype), size = box.dimensions.back().size;
  int64_t reach = 1;
  for (const Dimension& d : box.dimensions) reach += (d.size - 1) * d.memory_stride;
  const std::vector<unsigned char> untouched(static_cast<size_t>(reach * element), 0xa5);
  std::vector<unsigned char> expected = untouched, got = untouched, part = untouched;
  const int64_t begin = box.count / 3, end = box.count - box.count / 5;
  std::vector<unsigned char> expected_part = untouched, row(static_cast<size_t>(size * element));
  for (int64_t number = 0; number < box.count / size; ++number) {
    int64_t place = 0, rest = number;
    uint64_t index = box.first;
    for (size_t d = box.dimensions.size() - 1; d-- > 0;) {
      const Dimension& dim = box.dimensions[d];
      place += rest % dim.size * dim.memory_stride;
      index += static_cast<uint64_t>(rest % dim.size * dim.logical_stride);
      rest /= dim.size;
    }
    cpu::active_set().fill(plan, 7, index, row.data(), size, false);
    for (int64_t i = 0; i < size; ++i) {
      const auto at =
          static_cast<size_t>((place + i * box.dimensions.back().memory_stride) * element);
      std::memcpy(&expected[at], &row[static_cast<size_t>(i * element)],
                  static_cast<size_t>(element));
      const int64_t nth = number * size + i;
      if (nth >= begin && nth < end)
        std::memcpy(&expected_part[at], &row[static_cast<size_t>(i * element)],
                    static_cast<size_t>(element));
    }
  }
  cpu::fill(plan, 7, box, got.data(), threads);
  ++fills;
  if (got != expected) fail("rows differ from fills of each", c, dtype, size);
  if (box.dimensions.back().memory_stride != 1) return;
  const cpu::Rows rows = {box.dimensions.data(), static_cast<int>(box.dimensions.size()) - 1, size,
                          box.first};
  cpu::active_set().fill_rows(plan, 7, rows, begin, end, part.data(), false, size % 2 == 0);
  ++fills;
  if (part != expected_part) fail("a piece of rows differs from fills of each", c, dtype, size);
}

// Rows of `size` elements, starting anywhere in Philox blocks, near and far, in enough numbers for
// several batches of the kernel.
void run_rows(const Case& c, Dtype dtype, int64_t size) {
  const int64_t rows = 2 + 1100 / (size + 3) * 2;
  for (const int64_t gap : {int64_t{4}, int64_t{7}, (int64_t{1} << 34) - 1}) {
    // The last of the blocks before 2^32, of 32-bit words and of 64-bit ones.
    for (const uint64_t first :
         {uint64_t{2}, (uint64_t{1} << 34) - 999, (uint64_t{1} << 33) - 999}) {
      const Box dense{{{rows, size, size + gap}, {size, 1, 1}}, first, rows * size};
      check_rows(c, dtype, dense, 1);
      if (gap == 7) {
        const Box padded{{{rows, size + 3, size + gap}, {size, 1, 1}}, first, rows * size};
        const Box sheets{{{rows, 3 * size, 3 * size + 1}, {2, size, size + gap}, {size, 1, 1}},
                         first,
                         2 * rows * size};
        const Box across{{{rows, 1, size + gap}, {size, rows, 1}}, first, rows * size};
        for (const Box& box : {padded, sheets, across}) check_rows(c, dtype, box, 1);
      }
    }
  }
}

void run_threads(const Case& normal, Dtype dtype) {
  const Plan plan = normal.plan(dtype);
  const int64_t size = 200003;
  std::vector<unsigned char> one(static_cast<size_t>(size * element_size(dtype))), four(one.size());
  cpu::fill(plan, 7, flat_box(size), one.data(), 1);
  cpu::fill(plan, 7, flat_box(size), four.data(), 4);
  fills += 2;
  if (one != four) fail("the number of threads matters", normal, dtype, size);
  for (const int threads : {1, 2, 4})
    for (const int64_t row : {1, 37, 300})
      check_rows(normal, dtype, {{{70000 / row, row, row + 9}, {row, 1, 1}}, 3, 70000 / row * row},
                 threads);
}

// Boxes that share memory, and that lie in each other's gaps.
void check_overlap(const Case& normal) {
  const Plan plan = normal.plan(Dtype::Float32);
  std::vector<float> memory(64);
  const auto rows = [&](size_t at) {
    return Job{plan, 1, make_box({4, 2}, {8, 1}, {4, 2}, {0, 0}), &memory[at]};
  };
  const auto run = [&](size_t at) { return Job{plan, 1, flat_box(4), &memory[at]}; };
  if (!may_overlap({run(0), run(3)}) || may_overlap({run(0), run(4)}) ||
      !may_overlap({rows(0), run(22)}) || may_overlap({rows(0), run(26)}))
    fail("an overlap is missed, or seen where none is", normal, plan.dtype, 4);
}

// One matrix, or its box, in byte-exact memory of some layout.
template <class T>
std::vector<T> orthogonal(Dtype dtype, const std::vector<int64_t>& shape,
                          const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
                          const std::vector<int64_t>& offset, uint64_t key, double gain,
                          int threads) {
  int64_t reach = 1;
  for (size_t d = 0; d < sizes.size(); ++d) reach += (sizes[d] - 1) * strides[d];
  std::vector<T> memory(static_cast<size_t>(reach), T(7));
  OrthogonalJob job = make_orthogonal_job(dtype, sizes, strides, shape, offset, gain);
  job.keys = {key};
  job.data = {memory.data()};
  cpu::fill_orthogonal(job, threads);
  ++fills;
  return memory;
}

// Orthogonal matrices of odd sizes: whole, boxes, tall and wide, strided and permuted, threads.
template <class T>
void run_orthogonal(const Case& normal, Dtype dtype, bool is_portable) {
  for (const int64_t m : {1, 2, 5, 31, 32, 33, 63, 65, 100, 257}) {
    for (const int64_t n : {int64_t{1}, m / 2, m - 1, m}) {
      if (n < 1 || (is_portable && m * n > 12000)) continue;
      const auto whole = orthogonal<T>(dtype, {m, n}, {m, n}, {n, 1}, {0, 0}, 3, 0.5, 1);
      const auto threads = orthogonal<T>(dtype, {m, n}, {m, n}, {n, 1}, {0, 0}, 3, 0.5, 3);
      if (whole != threads) fail("threads matter to a matrix", normal, dtype, m);
      const auto down = orthogonal<T>(dtype, {m, n}, {m, n}, {1, m + 2}, {0, 0}, 3, 0.5, 1);
      const auto wide = orthogonal<T>(dtype, {n, m}, {n, m}, {m, 1}, {0, 0}, 3, 0.5, 1);
      const auto apart = orthogonal<T>(dtype, {m, n}, {m, n}, {3 * n, 3}, {0, 0}, 3, 0.5, 1);
      const int64_t rows = (m + 1) / 2, columns = (n + 1) / 2;
      const auto box = orthogonal<T>(dtype, {m, n}, {rows, columns}, {columns, 1},
                                     {m - rows, n - columns}, 3, 0.5, 2);
      for (int64_t i = 0; i < m; ++i)
        for (int64_t j = 0; j < n; ++j) {
          const T expected = whole[static_cast<size_t>(i * n + j)];
          // A square matrix is the transpose of a tall one.
          const bool turned = m != n && wide[static_cast<size_t>(j * m + i)] != expected;
          const int64_t r = i - (m - rows), c = j - (n - columns);
          if (turned || down[static_cast<size_t>(i + j * (m + 2))] != expected ||
              apart[static_cast<size_t>(3 * (i * n + j))] != expected ||
              (r >= 0 && c >= 0 && box[static_cast<size_t>(r * columns + c)] != expected))
            fail("the layout matters to a matrix", normal, dtype, m);
        }
    }
  }
  // Several waves; panels with memory of their own; few columns, drawn segment by segment.
  if (is_portable) return;
  for (const auto& [m, n] : {std::pair<int64_t, int64_t>{1056, 1000}, {20000, 53}}) {
    const auto whole = orthogonal<T>(dtype, {m, n}, {m, n}, {n, 1}, {0, 0}, 5, 0.5, 3);
    const auto box =
        orthogonal<T>(dtype, {m, n}, {m / 3, n - 7}, {n - 7, 1}, {m / 2, 4}, 5, 0.5, 2);
    for (int64_t i = 0; i < m / 3; ++i)
      for (int64_t j = 0; j < n - 7; ++j)
        if (box[static_cast<size_t>(i * (n - 7) + j)] !=
            whole[static_cast<size_t>((m / 2 + i) * n + j + 4)])
          fail("a box of a large matrix differs", normal, dtype, m);
  }
}

// A box of a line's box against it: the payload, and the scales of the blocks that it touches.
void check_part(const tests::Quantised& whole, const Case& c, tests::QuantisedMemory& all,
                const MatrixBox& box, int64_t offset) {
  tests::Quantised part = whole;
  part.box = box;
  tests::QuantisedMemory memory(part, offset);
  QuantisedJob job = part.job(c.plan(whole.source), 7);
  memory.give(job);
  cpu::fill_quantised(job, 2);
  ++fills;
  const int64_t in_byte = whole.format.packed ? 2 : 1, width = box.columns / in_byte;
  const auto matrix = [&](int64_t m) { return box.first_matrix - whole.box.first_matrix + m; };
  for (int64_t m = 0; m < box.matrices; ++m)
    for (int64_t row = 0; row < box.rows; ++row) {
      const int64_t there = matrix(m) * whole.box.rows + box.first_row - whole.box.first_row + row;
      const int64_t column = box.first_column - whole.box.first_column;
      if (std::memcmp(memory.payload() + (m * box.rows + row) * width,
                      all.payload() + (there * whole.box.columns + column) / in_byte,
                      static_cast<size_t>(width)))
        fail("a payload differs from the whole's", c, whole.source, row);
    }
  const Extended rows = part.row_blocks(), columns = part.column_blocks();
  const Extended all_rows = whole.row_blocks(), all_columns = whole.column_blocks();
  const int64_t size = whole.scale_size();
  for (int64_t m = 0; m < box.matrices; ++m)
    for (int64_t row = 0; row < rows.blocks; ++row) {
      const int64_t there =
          matrix(m) * all_rows.blocks + rows.first_block - all_rows.first_block + row;
      const int64_t column = columns.first_block - all_columns.first_block;
      if (std::memcmp(memory.scales() + (m * rows.blocks + row) * columns.blocks * size,
                      all.scales() + (there * all_columns.blocks + column) * size,
                      static_cast<size_t>(columns.blocks * size)))
        fail("a scale differs from the whole's", c, whole.source, row);
    }
}

// Low-precision weights: threads, parts, misaligned memory, one result alone, values in memory.
void run_quantised(const tests::Quantised& fill, const Case& c) {
  const Plan plan = c.plan(fill.source);
  tests::QuantisedMemory all(fill), threads(fill), alone(fill), read(fill);
  QuantisedJob job = fill.job(plan, 7);
  all.give(job);
  cpu::fill_quantised(job, 1);
  threads.give(job);
  cpu::fill_quantised(job, 3);
  if (all.bytes() != threads.bytes()) fail("threads matter to", c, fill.source, fill.box.rows);
  alone.give(job);
  job.payload = nullptr;
  cpu::fill_quantised(job, 1);
  alone.give(job);
  job.scales = nullptr;
  cpu::fill_quantised(job, 1);
  if (all.bytes() != alone.bytes()) fail("a result alone differs", c, fill.source, fill.box.rows);
  fills += 4;
  const MatrixBox& box = fill.box;
  const int64_t columns = box.columns / 4 * 2, last = box.first_matrix + box.matrices - 1;
  if (columns > 0 && box.rows > 2)
    for (const int64_t offset : {0, 1})
      for (const int64_t left : {box.first_column, box.first_column + columns})
        check_part(fill, c, all,
                   {last, 1, box.first_row + box.rows / 3, box.rows / 2, left, columns}, offset);
  if (fill.rows * fill.columns > 1 << 20) return;
  // The same values, drawn as float32 or widened to it.
  const Extended rows = fill.row_blocks(), across = fill.column_blocks();
  const int64_t height = rows.end - rows.begin, width = across.end - across.begin;
  const Box blocks = make_box({box.matrices, height, width}, {height * width, width, 1},
                              {box.first_matrix + box.matrices, fill.rows, fill.columns},
                              {box.first_matrix, rows.begin, across.begin});
  std::vector<float> values(static_cast<size_t>(blocks.count));
  if (fill.source == Dtype::Float32) {
    cpu::fill(plan, 7, blocks, values.data(), 1);
  } else {
    std::vector<uint16_t> halves(values.size());
    cpu::fill(plan, 7, blocks, halves.data(), 1);
    for (size_t i = 0; i < halves.size(); ++i)
      values[i] = TORCHINIT_TARGET::ScalarLanes::from_bits(uint32_t{halves[i]} << 16);
  }
  read.give(job);
  job.values = values.data();
  cpu::fill_quantised(job, 2);
  ++fills;
  if (all.bytes() != read.bytes()) fail("values in memory differ", c, fill.source, height);
}

// The largest magnitude against the values themselves.
void run_largest(const Case& c) {
  for (const int64_t size : {1, 5, 33, 40000}) {
    std::vector<float> values(static_cast<size_t>(size));
    cpu::fill(c.plan(Dtype::Float32), 7, flat_box(size), values.data(), 1);
    float largest = 0;
    for (const float value : values) largest = std::fmax(largest, std::fabs(value));
    if (cpu::largest_magnitude(c.plan(Dtype::Float32), 7, size, 2) != largest)
      fail("the largest magnitude is another", c, Dtype::Float32, size);
    fills += 2;
  }
}

}  // namespace

int main(int count, char** words) {
  if (count != 2) tests::stop("usage: sanitized_fills tests/data");
  const std::vector<Case> all = tests::read_cases(words[1]);
  const std::vector<Case> cases = tests::one_of_each_transform(all);
  const Case& normal = tests::find_case(all, "normal");
  const std::vector<tests::Quantised> quantised = tests::read_quantised(words[1]);
  check_fma();
  check_overlap(normal);
  for (auto set = cpu::supported_sets(); *set; ++set) {
    if (!cpu::choose_set((*set)->name)) return 1;
    for (const tests::DtypeName& d : tests::kDtypeTable) {
      for (const Case& c : cases) {
        if (!c.fills(d.dtype)) continue;
        run_sizes(c, d.dtype);
        run_boxes(c, d.dtype);
        for (const int64_t size : {1, 6, 64, 265}) run_rows(c, d.dtype, size);
      }
      const Case& usual = normal.fills(d.dtype) ? normal : tests::find_case(all, "words");
      for (int64_t size = 1; size <= 70; ++size) run_rows(usual, d.dtype, size);
      run_threads(usual, d.dtype);
    }
    for (const tests::Quantised& fill : quantised) {
      const Case& drawn = tests::find_case(all, fill.draw);
      run_quantised(fill, drawn);
      run_largest(drawn);
    }
    const bool is_portable = !set[1];  // the last, and slow
    run_orthogonal<float>(normal, Dtype::Float32, is_portable);
    run_orthogonal<double>(normal, Dtype::Float64, is_portable);
    run_orthogonal<uint16_t>(normal, Dtype::Float16, is_portable);
    run_orthogonal<uint8_t>(normal, Dtype::Float8E4M3, is_portable);
  }
  std::printf("sanitized fills: %ld, no fault\n", fills);
  return 0;
}
