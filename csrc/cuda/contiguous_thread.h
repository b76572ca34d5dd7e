// The work of one thread for a chunk of a launch table (launch_table.h), as a function of its
// number. The host runs it too, in tests/native/cuda_on_host.cpp.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../job/visit_plan.h"
#include "../simd/scalar.h"
#include "launch_table.h"

namespace torchinit::cuda {

// Consecutive packets of one job, and the range of their elements that belongs to it.
template <class Element>
struct Packets {
  static constexpr int size = kPacketBytes / sizeof(Element);  // elements of one
  struct alignas(kPacketBytes) Packet {
    Element values[size];
  };

  int count;
  int low, high;    // counted from the first element of the first packet
  Element* memory;  // of that element, whether or not it belongs to the job
  bool aligned;

  TORCHINIT_INLINE Packets(const TableJob& job, uint64_t from, uint64_t to)
      : count(static_cast<int>(to - from)) {
    const uint64_t start = from * size;
    const uint64_t end = job.first + static_cast<uint64_t>(job.count);
    const uint64_t left = end - start;
    low = job.first > start ? static_cast<int>(job.first - start) : 0;
    high = left < static_cast<uint64_t>(count) * size ? static_cast<int>(left) : count * size;
    // A number, because an address before the job's first element is not a valid pointer.
    const uintptr_t address = reinterpret_cast<uintptr_t>(job.data) +
                              static_cast<uintptr_t>((start - job.first) * sizeof(Element));
    memory = reinterpret_cast<Element*>(address);
    aligned = address % kPacketBytes == 0;
  }

  TORCHINIT_INLINE void store_packet(int number, const Element* values) const {
#if TORCHINIT_DEVICE_PASS
    // The compiler does not see that this is global memory; a store to any memory takes longer.
    uint4 packet;
    memcpy(&packet, values, sizeof packet);
    const size_t to = __cvta_generic_to_global(reinterpret_cast<uint4*>(memory) + number);
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};"
                 :
                 : "l"(to), "r"(packet.x), "r"(packet.y), "r"(packet.z), "r"(packet.w)
                 : "memory");
#else
    Packet packet;
    memcpy(&packet, values, sizeof packet);
    reinterpret_cast<Packet*>(memory)[number] = packet;
#endif
  }

  // Stores some packets, each kThreads after the one before.
  template <int packets>
  TORCHINIT_INLINE void store(int number, const Element* values) const {
    constexpr int step = kThreads * size;
    const int first = number * size;
    if (aligned && first >= low && first + (packets - 1) * step + size <= high) {
      TORCHINIT_UNROLL
      for (int i = 0; i < packets; ++i) {
        store_packet(number + i * kThreads, values + i * size);
      }
      return;
    }
    TORCHINIT_UNROLL
    for (int i = 0; i < packets; ++i) {
      const int start = first + i * step;
      if (aligned && start >= low && start + size <= high) {
        store_packet(number + i * kThreads, values + i * size);
        continue;
      }
      TORCHINIT_UNROLL
      for (int k = 0; k < size; ++k)
        if (start + k >= low && start + k < high) memory[start + k] = values[i * size + k];
    }
  }
};

// The packets `from` to `stop` - 1 of a chunk, in one or two runs: the Philox blocks of a run share
// the upper half of their number.
template <int packet_elements, int packet_blocks>
struct Runs {
  uint64_t from, stop, end;

  TORCHINIT_INLINE Runs(const TableJob& job, int64_t chunk_packets, int chunk) {
    const uint64_t packets = static_cast<uint64_t>(chunk_packets);
    const uint64_t last = job.first + static_cast<uint64_t>(job.count) - 1;
    stop = job.first / packet_elements + static_cast<uint64_t>(chunk) * packets;
    end = last / packet_elements + 1;
    if (stop + packets < end) end = stop + packets;
  }

  TORCHINIT_INLINE bool next() {
    constexpr uint64_t longest = 0x100000000u / packet_blocks;
    from = stop;
    stop = (from / longest + 1) * longest;
    if (end < stop) stop = end;
    return from < stop;
  }
};

// The keys of all rounds, in registers. The compiler would recompute them in every pass of a loop,
// but does not see through a shuffle.
TORCHINIT_INLINE TORCHINIT_TARGET::RoundKeys held_keys(uint64_t key) {
  auto keys = TORCHINIT_TARGET::round_keys(key);
#if TORCHINIT_DEVICE_PASS
  TORCHINIT_UNROLL
  for (int round = 0; round < 10; ++round) {
    keys.first[round] = __shfl_sync(0xffffffffu, keys.first[round], 0);
    keys.second[round] = __shfl_sync(0xffffffffu, keys.second[round], 0);
  }
#endif
  return keys;
}

// Whether values are computed in double precision, which takes twice the registers.
template <class Store, class Sampler>
struct IsDouble : std::bool_constant<Store::words == 2> {};
template <class Store, class Value>
struct IsDouble<Store, TORCHINIT_TARGET::Independent<TORCHINIT_TARGET::Widened<Value>>>
    : std::true_type {};
template <class Sampler>
struct IsDouble<void, Sampler> : std::false_type {};

// One pass of the loop: what a thread stores in it, and all threads of its thread block.
template <class Store, class Sampler>
struct Pass {
  static constexpr int size = Packets<typename Store::Element>::size;
  static constexpr int blocks = size / TORCHINIT_TARGET::block_size<Store>;  // of a packet
  static constexpr int abreast = IsDouble<Store, Sampler>::value ? 2 : 4;    // counters in flight
  static constexpr int packets = abreast > blocks ? abreast / blocks : 1;
  static constexpr int block_packets = packets * kThreads;
};
template <class Sampler>
struct Pass<void, Sampler> {
  static constexpr int packets = 1, block_packets = kThreads;
};

// Called by visit_plan in the kernel of one store and sampler; has no code for others.
template <class OwnStore, class OwnSampler>
struct FillChunk {
  const TableJob& job;
  int64_t chunk_packets;
  int chunk;  // of the job
  int thread;

  template <class L, class Store, class Sampler>
  TORCHINIT_INLINE void run(const Sampler& sampler) const {
    if constexpr (std::is_same_v<Store, OwnStore> && std::is_same_v<Sampler, OwnSampler>) {
      using Element = typename Store::Element;
      constexpr int size = Pass<Store, Sampler>::size, blocks = Pass<Store, Sampler>::blocks,
                    packets = Pass<Store, Sampler>::packets;
      using Run = TORCHINIT_TARGET::BlockRun<L, blocks, uint64_t{kThreads} * blocks>;

      const auto keys = held_keys(job.key);
      for (Runs<size, blocks> runs(job, chunk_packets, chunk); runs.next();) {
        const Packets<Element> there(job, runs.from, runs.stop);
        Run run((runs.from + static_cast<uint64_t>(thread)) * blocks, keys);
        for (int number = thread; number < there.count; number += packets * kThreads) {
          alignas(kPacketBytes) Element values[packets * size];
          TORCHINIT_TARGET::fill_groups<L, Sampler, Store, false, packets * blocks>(sampler, run,
                                                                                    values);
          there.template store<packets>(number, values);
          run.advance(packets * blocks);
        }
      }
    }
  }

  TORCHINIT_INLINE void run_constant(uint64_t pattern, int element) const {
    for (int bytes = element; bytes < 8; bytes *= 2) pattern |= pattern << (8 * bytes);
    alignas(kPacketBytes) uint8_t values[kPacketBytes];
    memcpy(values, &pattern, 8);
    memcpy(values + 8, &pattern, 8);
    for (Runs<kPacketBytes, 1> runs(job, chunk_packets, chunk); runs.next();) {
      const Packets<uint8_t> there(job, runs.from, runs.stop);
      for (int number = thread; number < there.count; number += kThreads)
        there.template store<1>(number, values);
    }
  }
};

template <class Store, class Sampler>
TORCHINIT_INLINE void fill_chunk(const Table& table, int chunk, int thread) {
  using L = TORCHINIT_TARGET::ScalarLanes;
  const int index = table.job_of(chunk);
  const TableJob& job = table.jobs[index];
  const Plan& plan = table.plans[job.plan];
  const int before = index ? table.jobs[index - 1].end : 0;
  const FillChunk<Store, Sampler> fill{job, table.chunk_packets, chunk - before, thread};
  if (plan.transform == Transform::Constant)
    fill.run_constant(plan.pattern, element_size(plan.dtype));
  else
    TORCHINIT_TARGET::visit_plan<L, L>(plan, fill);
}

// Calls visit.run<L, Store>(sampler) for the kernel of a table, without a store if it has only
// constants.
template <class Visitor>
void visit_table(const Table& table, const Visitor& visit) {
  using L = TORCHINIT_TARGET::ScalarLanes;
  if (table.plans[0].transform == Transform::Constant)
    visit.template run<L, void>(nullptr);
  else
    TORCHINIT_TARGET::visit_plan<L, L>(table.plans[0], visit);
}

}  // namespace torchinit::cuda
