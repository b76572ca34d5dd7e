// Every block takes three passes over its rows: the norms of its vectors; the products of its
// vectors with each other and with columns, a segment at a time; and the update of the columns. The
// columns stay in the tensor, or in a copy if it cannot hold them.
#include "streamed.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "block.h"
#include "helpers.h"
#include "panel_memory.h"
#include "parallel.h"
#include "source.h"

namespace torchinit::cpu {
namespace {

constexpr int64_t kPanel = kBlock * kBlock;
// Segments for each thread whose products wait to be added in order.
constexpr int64_t kAhead = 8;
constexpr int64_t kStride = kSegment + 16;

template <class T>
class Streamed : public Work {
 public:
  Streamed(OrthogonalJob&& given, int64_t threads)
      : job_(std::move(given)),
        all_(job_.reflectors),
        source_(job_),
        threads_(threads),
        first_panel_(job_.first_panel()),
        end_panel_(job_.end_panel()),
        copy_(job_) {
    if (!job_.holds_columns<T>() && end_panel_ > 1) {
      copy_ = make_orthogonal_job(source_.is_double ? Dtype::Float64 : Dtype::Float32,
                                  {all_.m, all_.n}, {all_.n, 1}, {all_.m, all_.n}, {0, 0}, 1);
      if (all_.m == all_.n) std::swap(copy_.rows, copy_.columns);
      copied_ = allocate<T>(all_.m * all_.n);
    }
    slot_ = (1 + end_panel_) * kPanel;
    of_thread_ = kBlock * kStride + 2 * kSegment * kBlock + 4 * kBlock;  // squares are transposed
    memory_ = allocate<T>(threads * of_thread_ + threads * kAhead * slot_ + 2 * slot_ + kBlock);
    steps_ = std::vector<Step>(job_.keys.size() * steps_needed());
  }

  void run(int64_t thread) override {
    Step* step = steps_.data();
    for (size_t matrix = 0; matrix < job_.keys.size(); ++matrix)
      for (int64_t block = end_panel_ - 1; block >= 0; --block)
        apply(matrix, block, memory_.get() + thread * of_thread_, step);
  }

 private:
  int64_t ahead() const { return threads_ * kAhead; }

  size_t steps_needed() const {
    int64_t steps = 0;
    for (int64_t block = 0; block < end_panel_; ++block)
      steps += 3 + 2 * ((all_.segments(block) + ahead() - 1) / ahead());
    return static_cast<size_t>(steps);
  }

  void apply(size_t matrix, int64_t block, T* own, Step*& step) {
    const int64_t length = all_.length(block), parts = all_.segments(block);
    const int count = all_.count(block);
    T* const slots = memory_.get() + threads_ * of_thread_;
    T* const sums = slots + ahead() * slot_;  // V^T V, then of each panel V^T X
    T* const products = sums + slot_;         // of each panel N V^T X
    T* const heads = products + slot_;
    (step++)->run(count, [&](int64_t r) {
      norms_.set(static_cast<int>(r), reflector(matrix, block, r, own), source_.gain.heads, heads);
    });
    for (int64_t first = 0; first < parts; first += ahead()) {
      const int64_t some = std::min(ahead(), parts - first);
      (step++)->run(some, [&](int64_t i) {
        multiply_segment(matrix, block, first + i, own, slots + i * slot_);
      });
      (step++)->run(1, [&](int64_t) {
        if (first == 0) std::memset(sums, 0, sizeof(T) * static_cast<size_t>(slot_));
        for (int64_t i = 0; i < some; ++i)
          for (int64_t e = 0; e < slot_; ++e) sums[e] += slots[i * slot_ + e];
      });
    }
    (step++)->run(1, [&](int64_t) {
      for (int r = count; r < kBlock; ++r) heads[r] = 0;
      make_triangle(source_.kernels, count, norms_, sums);
      for (int64_t panel = std::max(block, first_panel_); panel < end_panel_; ++panel) {
        T* const p = sums + (1 + panel) * kPanel;
        if (panel == block) {
          T x[kPanel];
          vectors(matrix, block, 0, std::min<int64_t>(length, kSegment), own);
          begin_columns(source_.kernels, own + kBlock * kStride, heads, count, x, p);
        }
        multiply_triangle(source_.kernels, sums, p, products + (1 + panel) * kPanel, count,
                          all_.count(panel));
      }
    });
    (step++)->run(parts, [&](int64_t i) { update(matrix, block, i, own, products, heads); });
  }

  TORCHINIT_TARGET::Reflector<T> reflector(size_t matrix, int64_t block, int64_t r, T* memory) {
    constexpr int64_t some = 8192;  // a multiple of the partial sums'
    static_assert(some <= kBlock * kStride);
    const int64_t length = all_.length(block) - r;
    const uint64_t number = static_cast<uint64_t>(all_.first(block) + r);
    const uint64_t index = number * static_cast<uint64_t>(all_.m) + number;
    double sums[TORCHINIT_TARGET::kPartialSums] = {}, sum = 0;
    T head{};
    for (int64_t begin = 0; begin < length; begin += some) {
      const int64_t n = std::min(some, length - begin);
      source_.set.fill(source_.plan, job_.keys[matrix], index + static_cast<uint64_t>(begin),
                       memory, n, false);
      if (begin == 0) head = memory[0];
      sum = source_.kernels.square_sum(memory, n, sums);
    }
    return TORCHINIT_TARGET::make_reflector(head, sum);
  }

  // Rows of V, after the normals in a thread's memory.
  void vectors(size_t matrix, int64_t block, int64_t begin, int64_t end, T* own) {
    source_.draw(job_.keys[matrix], block, begin, end, own, kStride);
    make_vectors(source_.kernels, own, kStride, begin, end, all_.count(block), norms_,
                 own + kBlock * kStride);
  }

  PanelMemory<T> memory_of(size_t matrix, int64_t panel, bool is_last) const {
    const int64_t first = all_.first(panel), end = first + all_.count(panel);
    if (copied_ && !is_last) return {copy_, source_, copied_.get(), first, end};
    return {job_, source_, job_.data[matrix], first, end};
  }

  void multiply_segment(size_t matrix, int64_t block, int64_t segment, T* own, T* slot) {
    const int64_t begin = segment * kSegment, first = all_.first(block);
    const int64_t end = std::min(all_.length(block), begin + kSegment);
    const int count = all_.count(block);
    T *const v = own + kBlock * kStride, *const x = v + kSegment * kBlock;
    vectors(matrix, block, begin, end, own);
    std::memset(slot, 0, sizeof(T) * static_cast<size_t>(slot_));
    source_.kernels.add_transposed(v, v, slot, count, count, end - begin);
    // Columns of other panels are zero in the block's own rows.
    const int64_t skip = begin == 0 ? count : 0;
    for (int64_t panel = std::max(block + 1, first_panel_); panel < end_panel_; ++panel) {
      memory_of(matrix, panel, false).load(x, first + begin + skip, first + end, first + begin);
      source_.kernels.add_transposed(v + skip * kBlock, x + skip * kBlock,
                                     slot + (1 + panel) * kPanel, count, all_.count(panel),
                                     end - begin - skip);
    }
  }

  void update(size_t matrix, int64_t block, int64_t segment, T* own, const T* products,
              const T* heads) {
    const int64_t begin = segment * kSegment, first = all_.first(block);
    const int64_t end = std::min(all_.length(block), begin + kSegment);
    const int count = all_.count(block);
    T *const v = own + kBlock * kStride, *const x = v + kSegment * kBlock;
    vectors(matrix, block, begin, end, own);
    const int64_t top = begin == 0 ? count : 0;  // the block's own rows
    for (int64_t panel = std::max(block, first_panel_); panel < end_panel_; ++panel) {
      const bool is_own = panel == block;
      const int columns = all_.count(panel);
      const T* const s = products + (1 + panel) * kPanel;
      if (is_own && top) {
        T unused[kPanel];
        begin_columns(source_.kernels, v, heads, count, x, unused);
      }
      if (!is_own)
        memory_of(matrix, panel, false).load(x, first + begin + top, first + end, first + begin);
      source_.kernels.multiply(is_own, v, s, x, top, columns, count);
      source_.kernels.multiply(!is_own, v + top * kBlock, s, x + top * kBlock, end - begin - top,
                               columns, count);
      if (block == 0) source_.multiply(x, end - begin);
      memory_of(matrix, panel, block == 0).store(x, first + begin, first + end, first + begin);
    }
  }

  const OrthogonalJob job_;
  const Reflectors all_;
  const Source<T> source_;
  const int64_t threads_, first_panel_, end_panel_;
  OrthogonalJob copy_;
  Memory<T> copied_, memory_;
  Norms<T> norms_;
  std::vector<Step> steps_;
  int64_t slot_, of_thread_;
};

}  // namespace

bool is_thin(const OrthogonalJob& job) {
  const Reflectors& all = job.reflectors;
  return all.m * all.n >= kLargeMatrix && all.n < 8 * kBlock;
}

template <class T>
void form_streamed(OrthogonalJob&& job, int64_t threads) {
  share(std::make_shared<Streamed<T>>(std::move(job), threads), threads - 1);
}

template void form_streamed<float>(OrthogonalJob&& job, int64_t threads);
template void form_streamed<double>(OrthogonalJob&& job, int64_t threads);

}  // namespace torchinit::cpu
