// Cuts boxes into pieces for the threads, and pieces into runs of consecutive logical indices.
#include "fill.h"

#include <algorithm>
#include <cstring>

#include "kernels.h"
#include "memory.h"
#include "parallel.h"

namespace torchinit::cpu {
namespace {

// Pieces start at multiples of this, so that all of them have the alignment of the first.
constexpr int64_t kPieceMultiple = 1 << 10;
constexpr int64_t kLargestPiece = 1 << 18;
// Elements made at a time on their way to scattered places, small enough for the L1 cache.
constexpr int64_t kBuffer = 2048;

template <class Element>
void scatter(const Element* from, Element* to, int64_t n, int64_t stride) {
  if (stride == 1)
    std::memcpy(to, from, static_cast<size_t>(n) * sizeof(Element));
  else
    for (int64_t i = 0; i < n; ++i) to[i * stride] = from[i];
}

// What every piece of a box needs. Elements are numbered in the row-major order of the box.
class BoxFill {
 public:
  BoxFill(const Plan& plan, uint64_t key, const Box& box, void* data)
      : plan_(plan),
        key_(key),
        box_(box),
        data_(static_cast<unsigned char*>(data)),
        element_(element_size(plan.dtype)),
        kernel_(active_set().fill),
        streaming_(box.count * element_ > last_level_cache()) {
    // The innermost dimensions whose elements are consecutive in the logical order make one run;
    // long contiguous rows are runs of their own, and filled in place.
    const auto& dims = box.dimensions;
    run_rank_ = 1;
    run_size_ = dims.back().size;
    in_place_ = dims.back().memory_stride == 1 && dims.back().logical_stride == 1 &&
                (dims.size() == 1 || run_size_ >= kBuffer / 4);
    if (dims.back().logical_stride != 1) run_size_ = 1, run_rank_ = 0;
    if (in_place_ || run_rank_ == 0) return;
    for (size_t d = dims.size() - 1; d-- > 0 && dims[d].logical_stride == run_size_; ++run_rank_)
      run_size_ *= dims[d].size;
  }

  int64_t count() const { return box_.count; }

  // The memory between the first and the last element where all of it belongs to the box; else
  // empty.
  Range memory() const {
    const bool is_dense = in_place_ && box_.dimensions.size() == 1;
    return {data_, is_dense ? static_cast<size_t>(box_.count * element_) : 0};
  }

  void fill(int64_t begin, int64_t end) const {
    const size_t outer = box_.dimensions.size() - run_rank_;
    while (begin < end) {
      const int64_t offset = begin % run_size_;
      const int64_t n = std::min(run_size_ - offset, end - begin);
      int64_t place = 0;
      uint64_t index = box_.first + static_cast<uint64_t>(offset);
      int64_t rest = begin / run_size_;
      for (size_t d = outer; d-- > 0;) {
        const Dimension& dim = box_.dimensions[d];
        place += rest % dim.size * dim.memory_stride;
        index += static_cast<uint64_t>(rest % dim.size * dim.logical_stride);
        rest /= dim.size;
      }
      if (in_place_)
        kernel_(plan_, key_, index, data_ + (place + offset) * element_, n, streaming_);
      else
        fill_scattered(index, place, offset, n);
      begin += n;
    }
  }

 private:
  // Elements offset to offset + n of the run whose first element is at `place`.
  void fill_scattered(uint64_t index, int64_t place, int64_t offset, int64_t n) const {
    alignas(64) unsigned char buffer[kBuffer * 8];
    for (int64_t done = 0; done < n;) {
      const int64_t count = std::min(kBuffer, n - done);
      kernel_(plan_, key_, index + static_cast<uint64_t>(done), buffer, count, false);
      place_values(buffer, place, offset + done, count);
      done += count;
    }
  }

  void place_values(const unsigned char* values, int64_t place, int64_t offset, int64_t n) const {
    const Dimension& row = box_.dimensions.back();
    const size_t outer = box_.dimensions.size() - run_rank_;
    while (n > 0) {
      const int64_t column = run_rank_ ? offset % row.size : 0;
      const int64_t count = run_rank_ ? std::min(row.size - column, n) : 1;
      int64_t at = place + column * row.memory_stride;
      int64_t rest = run_rank_ ? offset / row.size : 0;
      for (size_t d = box_.dimensions.size() - 1; run_rank_ && d-- > outer;) {
        at += rest % box_.dimensions[d].size * box_.dimensions[d].memory_stride;
        rest /= box_.dimensions[d].size;
      }
      scatter_row(values, data_ + at * element_, count, row.memory_stride);
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
  const Kernel kernel_;
  const bool streaming_;
  size_t run_rank_;
  int64_t run_size_;
  bool in_place_;
};

// Fills boxes none of which is empty, with one numbering of the pieces of all.
void fill_all(const BoxFill* boxes, size_t count, int threads) {
  int64_t elements = 0;
  std::vector<Range> ranges(count);
  for (size_t i = 0; i < count; ++i) {
    elements += boxes[i].count();
    ranges[i] = boxes[i].memory();
  }
  advise_huge_pages(ranges);
  const int64_t workers = useful_threads(elements, threads);
  if (workers <= 1) {
    on_threads(1, [&](const auto&) {
      for (size_t i = 0; i < count; ++i) boxes[i].fill(0, boxes[i].count());
    });
    return;
  }
  const int64_t even = (elements + workers - 1) / workers;
  const int64_t piece =
      (std::min(even, kLargestPiece) + kPieceMultiple - 1) / kPieceMultiple * kPieceMultiple;
  std::vector<int64_t> ends(count);  // the number of pieces up to and with each box
  int64_t pieces = 0;
  for (size_t i = 0; i < count; ++i) ends[i] = pieces += (boxes[i].count() + piece - 1) / piece;
  on_threads(workers, [&](const auto& take) {
    size_t i = 0;
    for (int64_t number; (number = take()) < pieces;) {
      while (number >= ends[i]) ++i;  // a thread's numbers rise
      const int64_t begin = (number - (i ? ends[i - 1] : 0)) * piece;
      boxes[i].fill(begin, std::min(boxes[i].count(), begin + piece));
    }
  });
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
