// Forms orthogonal matrices: blocks of reflectors are made, and panels of columns go through them
// from the last to the first.
//
// Blocks do not depend on panels. A wave makes as many blocks as fit into memory; then every panel
// goes through all of them in a thread's own memory, and back to the tensor until the next wave. If
// a tensor cannot hold panels between waves, because its dtype is narrower or it lacks rows, panels
// have their own memory, and the matrix is made a few panels at a time.
#include "orthogonal.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "../job/orthogonal_plan.h"
#include "block.h"
#include "helpers.h"
#include "kernels.h"
#include "panel_memory.h"
#include "parallel.h"
#include "streamed.h"

namespace torchinit::cpu {
namespace {

// Memory that a thread may take in addition to an eighth of a large matrix.
constexpr int64_t kThreadBytes = 1 << 20;
// Multiply-adds that make waking a thread worthwhile.
constexpr int64_t kWorthThread = 1 << 20;
// If there are several matrices, those of fewer elements are formed by one thread each.
constexpr int64_t kWorthSharing = 1 << 18;

// The way to form the matrices of one job, with a number of threads for each.
template <class T>
class Formation {
 public:
  Formation(const OrthogonalJob& job, int64_t threads)
      : job_(job),
        reflectors_(job.reflectors),
        source_(job),
        first_panel_(job.first_panel()),
        end_panel_(job.end_panel()) {
    const int64_t m = reflectors_.m, elements = m * reflectors_.n;
    stride_ = stride(m);
    thread_size_ = thread_size(m);
    int64_t room = round_up(m, 4) * kBlock * end_panel_ + 2 * kBlock * kBlock * end_panel_;
    if (elements >= kLargeMatrix) {
      const int64_t over =
          std::max<int64_t>(0, thread_size_ - kThreadBytes / int64_t{sizeof(T)}) * threads;
      room = std::min(room, elements / 8 - over);
    }
    int64_t total = 0;
    for (int64_t block = 0; block < end_panel_; ++block) total += block_size(block);
    int64_t panels = end_panel_ - first_panel_;
    if (total > room && !job.holds_columns<T>()) {
      panels = std::min(panels, std::max(threads, room * 2 / 3 / (m * kBlock)));
      own_panels_ = panels;
      room -= panels * m * kBlock;
    }
    waves_ = plan_waves(first_panel_, end_panel_, panels, room,
                        [&](int64_t block) { return block_size(block); });
    memory_size_ = threads * thread_size_ + own_panels_ * m * kBlock + waves_.most;
    threads_ = threads;
  }

  // How many threads may work on a matrix; for long columns, their memory is part of the eighth.
  static int64_t most_threads(const Reflectors& all) {
    const int64_t over = thread_size(all.m) - kThreadBytes / int64_t{sizeof(T)};
    return over <= 0 || all.m * all.n < kLargeMatrix
               ? INT64_MAX
               : std::max<int64_t>(1, all.m * all.n / 16 / over);
  }

  // Elements of memory.
  int64_t memory_size() const { return memory_size_; }

  size_t steps() const { return 2 * waves_.list.size(); }

  // The work of thread `number`, counted from 0. step(pieces, piece) does the pieces of a step, or
  // a thread's share.
  template <class DoStep>
  void form(size_t matrix, T* memory, int64_t thread, const DoStep& step) const {
    T* const own = memory + thread * thread_size_;
    T* const panels = memory + threads_ * thread_size_;
    T* const blocks = panels + own_panels_ * reflectors_.m * kBlock;
    for (const Wave& wave : waves_.list) {
      step(wave.end_block - wave.block, [&](int64_t i) {
        const int64_t block = wave.end_block - 1 - i;
        make(matrix, block, own, block_of(wave, block, blocks));
      });
      step(wave.end_panel - wave.panel, [&](int64_t i) {
        const int64_t panel = wave.end_panel - 1 - i;  // those with most blocks first
        if (panel < wave.block) return;
        T* const x = own_panels_ ? panels + (panel - wave.panel) * reflectors_.m * kBlock : own;
        form_panel(matrix, wave, panel, x, blocks);
      });
    }
  }

 private:
  // The stride of a block's normals: not a multiple of the page, or rows would share a cache set.
  static int64_t stride(int64_t m) { return round_up(m, 16) + 16; }
  static int64_t thread_size(int64_t m) { return kBlock * stride(m); }
  int64_t block_size(int64_t block) const { return Block<T>::size(reflectors_.length(block)); }

  Block<T> block_of(const Wave& wave, int64_t block, T* blocks) const {
    for (int64_t before = wave.end_block - 1; before > block; --before)
      blocks += block_size(before);
    return Block<T>::at(blocks, reflectors_.length(block));
  }

  void make(size_t matrix, int64_t block, T* normals, const Block<T>& to) const {
    const int64_t length = reflectors_.length(block);
    source_.draw(job_.keys[matrix], block, 0, length, normals, stride_);
    make_block(kernels_, normals, stride_, length, reflectors_.count(block), source_.gain.heads,
               to);
  }

  void form_panel(size_t matrix, const Wave& wave, int64_t panel, T* x, T* blocks) const {
    const int64_t m = reflectors_.m, first = reflectors_.first(panel);
    const int columns = reflectors_.count(panel);
    const PanelMemory<T> memory(job_, source_, job_.data[matrix], first, first + columns);
    if (!memory.any()) return;
    const bool loads = !own_panels_ && panel >= wave.end_block;
    if (loads) memory.load(x, reflectors_.first(wave.end_block), m);
    for (int64_t block = std::min(panel, wave.end_block - 1); block >= wave.block; --block)
      apply_block(kernels_, block_of(wave, block, blocks), reflectors_.length(block),
                  reflectors_.count(block), columns, block == panel,
                  x + reflectors_.first(block) * kBlock);
    if (wave.is_last) source_.multiply(x, m);
    if (wave.is_last || !own_panels_) memory.store(x, reflectors_.first(wave.block), m);
  }

  const OrthogonalJob& job_;
  const Reflectors reflectors_;
  const Source<T> source_;
  const BlockKernels<T>& kernels_ = source_.kernels;
  const int64_t first_panel_, end_panel_;
  int64_t threads_;
  int64_t stride_, thread_size_, own_panels_ = 0, memory_size_;
  Waves waves_;
};

// Distributes matrices over the threads, or the threads within each matrix.
template <class T>
class Matrices : public Work {
 public:
  Matrices(OrthogonalJob&& job, int64_t threads, bool one_each)
      : job_(std::move(job)),
        formation_(job_, one_each ? 1 : threads),
        one_each_(one_each),
        size_(round_up(formation_.memory_size(), 64)),
        memory_(allocate<T>(one_each ? threads * size_ : size_)),
        steps_(one_each ? 1 : job_.keys.size() * formation_.steps()) {}

  void run(int64_t number) override {
    const int64_t count = static_cast<int64_t>(job_.keys.size());
    if (one_each_) {
      const auto alone = [](int64_t pieces, const auto& piece) {
        for (int64_t i = 0; i < pieces; ++i) piece(i);
      };
      steps_[0].run(count, [&](int64_t i) {
        formation_.form(static_cast<size_t>(i), memory_.get() + number * size_, 0, alone);
      });
      return;
    }
    Step* step = steps_.data();
    for (int64_t i = 0; i < count; ++i)
      formation_.form(static_cast<size_t>(i), memory_.get(), number,
                      [&](int64_t pieces, const auto& piece) { step++->run(pieces, piece); });
  }

 private:
  const OrthogonalJob job_;
  const Formation<T> formation_;
  const bool one_each_;
  const int64_t size_;
  const Memory<T> memory_;
  std::vector<Step> steps_;
};

template <class T>
void form_all(OrthogonalJob&& job, int threads) {
  const int64_t count = static_cast<int64_t>(job.keys.size());
  const int64_t m = job.reflectors.m, n = job.reflectors.n;
  const int64_t adds = m * n * (n / 4 + kBlock);  // about; a draw costs as much as kBlock of them
  int64_t workers = std::max<int64_t>(
      1, useful_threads(count * adds / (kWorthThread / kLeastPerThread), threads));
  if (is_thin(job)) return form_streamed<T>(std::move(job), workers);
  const bool one_each = count >= workers && m * n < kWorthSharing;
  workers = std::min({workers, one_each ? count : job.reflectors.blocks(),
                      Formation<T>::most_threads(job.reflectors)});
  share(std::make_shared<Matrices<T>>(std::move(job), workers, one_each), workers - 1);
}

}  // namespace

void fill_orthogonal(OrthogonalJob job, int threads) {
  if (job.keys.empty() || job.rows.count() == 0 || job.columns.count() == 0) return;
  if (job.dtype == Dtype::Float64)
    form_all<double>(std::move(job), threads);
  else
    form_all<float>(std::move(job), threads);
}

}  // namespace torchinit::cpu
