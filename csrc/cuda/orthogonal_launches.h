// The launches that form orthogonal matrices, and their memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>

#include "../job/orthogonal_plan.h"
#include "orthogonal_thread.h"

namespace torchinit::cuda {

// Memory that small matrices formed together may take.
constexpr int64_t kTogether = 1 << 24;

inline DeviceAxis device_axis(const Axis& axis) {
  const auto& dimensions = axis.box().dimensions;
  DeviceAxis device{};
  device.rank = static_cast<int>(dimensions.size());
  if (device.rank > kAxisRank)
    throw std::invalid_argument("the tensor has more than 8 dimensions that cannot be merged");
  std::copy(dimensions.begin(), dimensions.end(), device.dimensions);
  device.first = axis.begin();
  device.count = axis.count();
  return device;
}

// The way to form the matrices of a job within a limit of memory.
template <class T>
class DeviceFormation {
 public:
  explicit DeviceFormation(const OrthogonalJob& job) : job_(job) {
    const Reflectors& all = job.reflectors;
    const bool runs = job.rows.is_run() && job.columns.is_run();
    const bool is_down = job.rows.step() == 1 || job.rows.count() == 1;
    wave_.all = all;
    wave_.dtype = job.dtype;
    wave_.is_own = !(job.holds_columns<T>() && runs &&
                     (is_down || job.columns.step() == 1 || job.columns.count() == 1));
    const Gain<T> gain(job.gain);
    wave_.gain = gain.heads;
    wave_.factor = gain.formed;
    wave_.rows = device_axis(job.rows);
    wave_.columns = device_axis(job.columns);
    wave_.row_step = wave_.is_own || is_down ? 1 : job.rows.step();
    wave_.column_step = wave_.is_own ? all.m : job.columns.step();

    const int64_t first = job.first_panel(), end = job.end_panel();
    const auto block_size = [&](int64_t block) {
      return DeviceWave<T>::block_size(all.length(block)) +
             all.segments(0) * kBlock * kBlock;  // and its gram's segments, or less
    };
    const int64_t column_size = (all.segments(0) + 1) * kBlock;  // P's segments and S
    int64_t panels = end - first, room = INT64_MAX;
    if (all.m * all.n >= kLargeMatrix) {
      const int64_t quarter = all.m * all.n / 4;
      if (wave_.is_own)
        panels = std::clamp<int64_t>(quarter * 2 / 3 / (kBlock * (all.m + column_size)), 1, panels);
      room = quarter - panels * kBlock * (column_size + (wave_.is_own ? all.m : 0));
    }
    waves_ = plan_waves(first, end, panels, room, block_size);
    width_ = panels * kBlock;
    together_ = std::clamp<int64_t>(kTogether / matrix_size(), 1, kMatricesALaunch);
    together_ = std::min<int64_t>(together_, static_cast<int64_t>(job.keys.size()));
  }

  // Elements of memory.
  int64_t memory_size() const { return together_ * matrix_size(); }

  // launch.template run<Thread>(wave, x, y, z, block) runs a grid of thread blocks.
  template <class Store, class Launch>
  void form(T* memory, const Launch& launch) {
    const int64_t count = static_cast<int64_t>(job_.keys.size());
    const Reflectors& all = job_.reflectors;
    DeviceWave<T>& wave = wave_;
    wave.blocks_size = wave.grams_size = waves_.most;
    wave.partials_size = all.segments(0) * width_ * kBlock;
    wave.solved_size = width_ * kBlock;
    wave.own_size = wave.is_own ? width_ * all.m : 0;
    wave.blocks = memory;
    wave.partials = wave.blocks + together_ * wave.blocks_size;
    wave.solved = wave.partials + together_ * wave.partials_size;
    wave.own = wave.solved + together_ * wave.solved_size;
    for (int64_t matrix = 0; matrix < count; matrix += together_) {
      const int64_t some = std::min(together_, count - matrix);
      for (int64_t i = 0; i < some; ++i) {
        wave.keys[i] = job_.keys[static_cast<size_t>(matrix + i)];
        wave.data[i] = job_.data[static_cast<size_t>(matrix + i)];
      }
      for (const Wave& each : waves_.list) form_wave<Store>(each, some, launch);
    }
  }

 private:
  int64_t matrix_size() const {
    const Reflectors& all = job_.reflectors;
    return waves_.most + (all.segments(0) + 1) * width_ * kBlock +
           (wave_.is_own ? width_ * all.m : 0);
  }

  template <class Store, class Launch>
  void form_wave(const Wave& each, int64_t matrices, const Launch& launch) {
    DeviceWave<T>& wave = wave_;
    const Reflectors& all = wave.all;
    wave.block = each.block;
    wave.end_block = each.end_block;
    wave.column = std::max(job_.columns.begin(), all.first(each.panel));
    wave.end_column = std::min(job_.columns.end(), all.first(each.end_panel));
    if (!wave.is_own) wave.column = job_.columns.begin();
    const int64_t blocks = each.end_block - each.block, length = all.length(each.block);
    wave.grams = wave.blocks;  // after the blocks
    for (int64_t block = each.block; block < each.end_block; ++block)
      wave.grams += DeviceWave<T>::block_size(all.length(block));
    using Draw = DrawThread<T, Store>;
    launch.template run<Draw>(wave, over(Draw::touched(length) * kBlock, Draw::threads), blocks,
                              matrices, 0);
    launch.template run<ReflectThread<T>>(wave, kBlock, blocks, matrices, 0);
    launch.template run<GramThread<T>>(wave, all.segments(each.block), blocks, matrices, 0);
    launch.template run<TriangleThread<T>>(wave, 1, blocks, matrices, 0);
    for (int64_t block = each.end_block - 1; block >= each.block; --block) {
      if (all.first(block) >= wave.end_column) continue;
      if (wave.row_step == 1)
        apply<true>(block, matrices, launch);
      else
        apply<false>(block, matrices, launch);
    }
    if (each.is_last && (wave.is_own || wave.factor != 1))
      launch.template run<StoreThread<T>>(
          wave, over(wave.rows.count * wave.columns.count, StoreThread<T>::threads), 1, matrices,
          0);
  }

  template <bool down, class Launch>
  void apply(int64_t block, int64_t matrices, const Launch& launch) {
    DeviceWave<T>& wave = wave_;
    const Reflectors& all = wave.all;
    const int64_t later = wave.end_column - wave.later(block),
                  met = wave.end_column - wave.met(block);
    using Project = ProjectThread<T, down>;
    using Update = UpdateThread<T, down>;
    const int number = static_cast<int>(block);
    if (later > 0 && all.length(block) > all.count(block))
      launch.template run<Project>(wave, all.segments(block), over(later, Project::columns),
                                   matrices, number);
    launch.template run<SolveThread<T>>(wave, over(met, kBlock), 1, matrices, number);
    launch.template run<Update>(wave, over(all.length(block), Update::Z::M),
                                over(met, Update::Z::N), matrices, number);
  }

  static int64_t over(int64_t items, int64_t each) { return (items + each - 1) / each; }

  const OrthogonalJob& job_;
  DeviceWave<T> wave_{};
  Waves waves_;
  int64_t width_ = 0, together_ = 1;
};

}  // namespace torchinit::cuda
