// The registers of a warp, and an instruction as it runs: for all 32 lanes at once.
#pragma once

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace torchinit::emulator {

constexpr int kLanes = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;

// What no program may do, or what this emulator does not know.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Block;

// A register, constant or special register: where its lanes are, and the bytes of one. A predicate
// is one byte, 0 or 1.
struct Operand {
  int place = 0, width = 0;
};

struct Warp;
struct Instruction;
using Operation = void (*)(Warp&, const Instruction&, uint32_t active);

// An integer, or the bits of another number.
struct Type {
  int size = 0;
  bool is_signed = false;
};

// What comes after an instruction.
enum class Flow { Next, Branch, UniformBranch, Return, Barrier, Shuffle };

struct Instruction {
  Operation run = nullptr;  // for the lanes that are active
  Flow flow = Flow::Next;
  std::array<Operand, 4> out{};
  std::array<Operand, 5> in{};
  Type type, source;   // in memory; of a conversion
  int count = 1;       // numbers side by side in memory
  int64_t offset = 0;  // added to an address
  Operand predicate{};
  bool is_predicated = false, is_negated = false;
  int target = -1;
  bool ends_pass = false;  // a branch back, of a loop that stores
};

template <class T>
inline int64_t read_as(const unsigned char* from) {
  T value;
  __builtin_memcpy(&value, from, sizeof value);
  return static_cast<int64_t>(value);
}

// A number in memory, extended by its sign if it has one.
inline int64_t number_at(const unsigned char* from, Type type) {
  switch (type.size) {
    case 1:
      return type.is_signed ? read_as<int8_t>(from) : read_as<uint8_t>(from);
    case 2:
      return type.is_signed ? read_as<int16_t>(from) : read_as<uint16_t>(from);
    case 4:
      return type.is_signed ? read_as<int32_t>(from) : read_as<uint32_t>(from);
    default:
      return read_as<int64_t>(from);
  }
}

// The lowest bytes of a number.
inline void put_number(unsigned char* to, int size, int64_t value) {
  switch (size) {
    case 1:
      __builtin_memcpy(to, &value, 1);
      break;
    case 2:
      __builtin_memcpy(to, &value, 2);
      break;
    case 4:
      __builtin_memcpy(to, &value, 4);
      break;
    default:
      __builtin_memcpy(to, &value, 8);
  }
}

struct Warp {
  Block* block;
  int first_thread;
  // 64-bit words, so that lanes of every width are aligned.
  std::vector<uint64_t> registers;

  template <class T>
  T* lanes(Operand operand) {
    return reinterpret_cast<T*>(reinterpret_cast<unsigned char*>(registers.data()) + operand.place);
  }
  // A number in the lowest bits of a register, which may be wider.
  int64_t get(Operand operand, int lane, Type type) {
    return number_at(lanes<unsigned char>(operand) + lane * operand.width, type);
  }
  void put(Operand operand, int lane, int64_t value) {
    put_number(lanes<unsigned char>(operand) + lane * operand.width, operand.width, value);
  }
};

template <class F>
inline void for_lanes(uint32_t active, const F& f) {
  if (active == kAllLanes) {
#pragma GCC ivdep
    for (int lane = 0; lane < kLanes; ++lane) f(lane);
  } else {
    for (; active; active &= active - 1) f(__builtin_ctz(active));
  }
}

}  // namespace torchinit::emulator
