// Cuts boxes into pieces for the threads, and pieces into runs of consecutive logical indices.
#include "fill.h"

#include <algorithm>
#include <cstring>

#include "../base/float_environment.h"
#include "helpers.h"
#include "kernels.h"
#include "memory.h"
#include "parallel.h"
#include "row_walk.h"

namespace torchinit::cpu {
namespace {

// Pieces start at multiples of this, so all have the alignment of the first.
constexpr int64_t kPieceMultiple = 1 << 10;
constexpr int64_t kLargestPiece = 1 << 18;
// Pieces for each thread: little is left when one of them loses its processor to another program.
constexpr int64_t kPiecesPerThread = 4;
// Elements made at a time before they are scattered; few enough for the L1 cache.
constexpr int64_t kBuffer = 2048;

template <class Element>
void scatter(const Element* from, Element* to, int64_t n, int64_t stride) {
  if (stride == 1)
    std::memcpy(to, from, static_cast<size_t>(n) * sizeof(Element));
  else
    for (int64_t i = 0; i < n; ++i) to[i * stride] = from[i];
}

// Rows of consecutive logical indices with gaps in memory are filled in place from this length on,
// shorter ones through the buffer.
constexpr int64_t kLeastInPlace = 64;
// Rows bypass the cache from this length on.
constexpr int64_t kLeastStreamed = 512;

// The data that every piece of a box needs. Elements are numbered in the box's row-major order.
class BoxFill {
 public:
  BoxFill(const Plan& plan, uint64_t key, const Box& box, void* data)
      : plan_(plan),
        key_(key),
        box_(box),
        data_(static_cast<unsigned char*>(data)),
        element_(element_size(plan.dtype)),
        set_(active_set()),
        streaming_(box.count * element_ > last_level_cache()) {
    // The innermost dimensions whose elements are consecutive in the logical order make one row. If
    // its memory is not contiguous, long contiguous parts of it make separate rows.
    const auto& dims = box.dimensions;
    size_t outer = dims.size();
    int64_t size = 1;
    while (outer > 0 && dims[outer - 1].logical_stride == size) size *= dims[--outer].size;
    const Dimension& last = dims.back();
    in_place_ = outer >= dims.size() - 1 && (outer == dims.size() || last.memory_stride == 1);
    if (!in_place_ && last.memory_stride == 1 && last.size >= kLeastInPlace) {
      outer = dims.size() - 1;
      size = last.size;
      in_place_ = true;
    }
    if (plan.transform == Transform::Constant && is_dense())
      in_place_ = true, outer = 0, size = box.count;  // in whatever order
    rows_ = {dims.data(), static_cast<int>(outer), size, box.first};
  }

  int64_t count() const { return box_.count; }

  // The memory from the first to the last element if all of it belongs to the box; else empty.
  Range memory() const {
    return {data_, is_dense() ? static_cast<size_t>(box_.count * element_) : 0};
  }

  void fill(int64_t begin, int64_t end) const {
    if (in_place_ && rows_.rank == 0)
      set_.fill(plan_, key_, box_.first + static_cast<uint64_t>(begin), data_ + begin * element_,
                end - begin, streaming_);
    else if (in_place_)
      set_.fill_rows(plan_, key_, rows_, begin, end, data_, false,
                     streaming_ && rows_.size >= kLeastStreamed);
    else
      fill_scattered(begin, end);
  }

 private:
  // Whether the elements are contiguous in memory, in their order.
  bool is_dense() const {
    int64_t dense = 1;
    for (size_t d = box_.dimensions.size(); d-- > 0; dense *= box_.dimensions[d].size)
      if (box_.dimensions[d].memory_stride != dense) return false;
    return true;
  }

  void fill_scattered(int64_t begin, int64_t end) const {
    alignas(64) unsigned char buffer[kBuffer * 8];
    TORCHINIT_TARGET::RowWalk walk(rows_, begin);
    while (begin < end) {
      const int64_t count = std::min(kBuffer, end - begin);
      if (count <= walk.left_in_row())
        set_.fill(plan_, key_, walk.index(), buffer, count, false);
      else
        set_.fill_rows(plan_, key_, rows_, begin, begin + count, buffer, true, false);
      const unsigned char* values = buffer;
      for (int64_t left = count; left > 0;) {
        const int64_t n = std::min(walk.left_in_row(), left);
        place_values(values, walk.place() - walk.column(), walk.column(), n);
        values += n * element_;
        left -= n;
        walk.advance(n);
      }
      begin += count;
    }
  }

  // Elements offset to offset + n of the row whose first element is at `place`.
  void place_values(const unsigned char* values, int64_t place, int64_t offset, int64_t n) const {
    const Dimension& last = box_.dimensions.back();
    const size_t outer = static_cast<size_t>(rows_.rank);
    while (n > 0) {
      const int64_t column = offset % last.size;
      const int64_t count = std::min(last.size - column, n);
      int64_t at = place + column * last.memory_stride;
      int64_t rest = offset / last.size;
      for (size_t d = box_.dimensions.size() - 1; d-- > outer;) {
        at += rest % box_.dimensions[d].size * box_.dimensions[d].memory_stride;
        rest /= box_.dimensions[d].size;
      }
      scatter_row(values, data_ + at * element_, count, last.memory_stride);
      values += count * element_;
      offset += count;
      n -= count;
    }
  }

  void scatter_row(const unsigned char* from, unsigned char* to, int64_t n, int64_t stride) const {
    if (element_ == 1)
      scatter(from, to, n, stride);
    else if (element_ == 2)
      scatter(reinterpret_cast<const uint16_t*>(from), reinterpret_cast<uint16_t*>(to), n, stride);
    else if (element_ == 4)
      scatter(reinterpret_cast<const uint32_t*>(from), reinterpret_cast<uint32_t*>(to), n, stride);
    else
      scatter(reinterpret_cast<const uint64_t*>(from), reinterpret_cast<uint64_t*>(to), n, stride);
  }

  const Plan& plan_;
  const uint64_t key_;
  const Box& box_;
  unsigned char* const data_;
  const int64_t element_;
  const InstructionSet& set_;
  const bool streaming_;
  bool in_place_;
  Rows rows_;
};

// Fills boxes, none of them empty, with one numbering for the pieces of all.
void fill_all(const BoxFill* boxes, size_t count, int threads) {
  int64_t elements = 0;
  std::vector<Range> ranges(count);
  for (size_t i = 0; i < count; ++i) {
    elements += boxes[i].count();
    ranges[i] = boxes[i].memory();
  }
  advise_huge_pages(ranges);
  const int64_t workers = elements < kLeastShared ? 1 : useful_threads(elements, threads);
  if (workers <= 1) {
    const FloatEnvironment environment;  // share() has one of its own
    for (size_t i = 0; i < count; ++i) boxes[i].fill(0, boxes[i].count());
    return;
  }
  const int64_t even = std::max(elements / (workers * kPiecesPerThread), kLeastPerThread);
  const int64_t piece =
      (std::min(even, kLargestPiece) + kPieceMultiple - 1) / kPieceMultiple * kPieceMultiple;
  std::vector<int64_t> ends(count);  // the number of pieces up to and including each box
  int64_t pieces = 0;
  for (size_t i = 0; i < count; ++i) ends[i] = pieces += (boxes[i].count() + piece - 1) / piece;
  const auto fill_piece = [&](int64_t number) {
    const size_t i =
        static_cast<size_t>(std::upper_bound(ends.begin(), ends.end(), number) - ends.begin());
    const int64_t begin = (number - (i ? ends[i - 1] : 0)) * piece;
    boxes[i].fill(begin, std::min(boxes[i].count(), begin + piece));
  };
  share(std::make_shared<Pieces>(pieces, fill_piece), std::min(workers, pieces) - 1);
}

}  // namespace

void fill(const Plan& plan, uint64_t key, const Box& box, void* data, int threads) {
  if (box.count == 0) return;
  const BoxFill work(plan, key, box, data);
  fill_all(&work, 1, threads);
}

void fill(const std::vector<Job>& jobs, int threads) {
  std::vector<BoxFill> boxes;
  boxes.reserve(jobs.size());
  for (const Job& job : jobs)
    if (job.box.count) boxes.emplace_back(job.plan, job.key, job.box, job.data);
  fill_all(boxes.data(), boxes.size(), threads);
}

}  // namespace torchinit::cpu
