#include "instructions.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "block.h"

namespace torchinit::emulator {
namespace {

template <class F, class Out, class... In, size_t... k>
inline void map_lanes(Warp& warp, const Instruction& i, uint32_t active,
                      std::index_sequence<k...>) {
  Out* const to = warp.lanes<Out>(i.out[0]);
  for_lanes(active, [&](int lane) { to[lane] = F{}(warp.lanes<In>(i.in[k])[lane]...); });
}

template <class F, class Out, class... In>
void map(Warp& warp, const Instruction& i, uint32_t active) {
  map_lanes<F, Out, In...>(warp, i, active, std::index_sequence_for<In...>{});
}

// Integer arithmetic that wraps: in unsigned numbers, of at least 32 bits so that C++ does not
// widen them to int.
template <class T>
using Wrapping = std::conditional_t<sizeof(T) < 4, uint32_t, std::make_unsigned_t<T>>;
template <class T>
constexpr Wrapping<T> wrapping(T value) {
  return static_cast<Wrapping<T>>(value);
}

// The nearest number of `digits` digits behind the point and exponents from `least` on, ties to
// even; `most` in place of all larger ones. The sum of exponent and digits is right where rounding
// carries, into infinity too.
uint32_t encode(float value, int digits, int least, double most) {
  const uint32_t sign = std::signbit(value) ? 1u : 0u;
  const double size = std::fmin(std::fabs(static_cast<double>(value)), most);
  const int exponent = size == 0 ? least : std::max(std::ilogb(size), least);
  const uint32_t units = static_cast<uint32_t>(std::nearbyint(std::ldexp(size, digits - exponent)));
  const uint32_t bits = (static_cast<uint32_t>(exponent - least) << digits) + units;
  const int width = digits == 10 || digits == 7 ? 16 : 8;
  return sign << (width - 1) | bits;
}
uint32_t float16(float value) { return value != value ? 0x7fffu : encode(value, 10, -14, 0x1p16); }
uint32_t bfloat16(float value) {
  return value != value ? 0x7fffu : encode(value, 7, -126, 0x1p128);
}
uint32_t e4m3(float value) { return value != value ? 0x7fu : encode(value, 3, -6, 448); }
uint32_t e5m2(float value) { return value != value ? 0x7fu : encode(value, 2, -14, 57344); }

// Of an integer, by truncation; NaN becomes 0 and what is out of range the nearest that there is.
template <class To, class From>
To truncate(From value) {
  if (value != value) return 0;
  // The largest integer may round up: to a number that is out of range itself.
  if (value >= static_cast<From>(std::numeric_limits<To>::max()))
    return std::numeric_limits<To>::max();
  if (value <= static_cast<From>(std::numeric_limits<To>::min()))
    return std::numeric_limits<To>::min();
  return static_cast<To>(value);
}

template <class To, class From>
void convert_all(Warp& warp, const Instruction& i, uint32_t active) {
  const From* const from = warp.lanes<From>(i.in[0]);
  To* const to = warp.lanes<To>(i.out[0]);
  for_lanes(active, [&](int lane) { to[lane] = static_cast<To>(from[lane]); });
}

// Between integers. The commonest conversions are done for all lanes at once.
void convert(Warp& warp, const Instruction& i, uint32_t active) {
  if (i.in[0].width == i.source.size && i.out[0].width == i.type.size) {
    if (i.source.size == 8 && i.type.size == 4)
      return convert_all<uint32_t, uint64_t>(warp, i, active);
    if (i.source.size == 4 && i.type.size == 8)
      return i.source.is_signed ? convert_all<int64_t, int32_t>(warp, i, active)
                                : convert_all<uint64_t, uint32_t>(warp, i, active);
  }
  for_lanes(active, [&](int lane) {
    const int64_t value = warp.get(i.in[0], lane, i.source);
    warp.put(i.out[0], lane, number_at(reinterpret_cast<const unsigned char*>(&value), i.type));
  });
}

uint64_t address_of(Warp& warp, const Instruction& i, int lane) {
  const Operand& base = i.in[0];
  return static_cast<uint64_t>(warp.get(base, lane, {base.width, false}) + i.offset);
}

const Thread& thread_of(Warp& warp, int lane) {
  warp.block->thread.number = static_cast<uint32_t>(warp.first_thread + lane);
  return warp.block->thread;
}

struct Parameters {
  static const unsigned char* read(Warp& warp, uint64_t address, size_t size, int) {
    const auto& bytes = warp.block->parameters;
    if (address % size) throw Fault("a load of a parameter is misaligned");
    if (address > bytes.size() || size > bytes.size() - address)
      throw Fault("a load of a parameter is out of bounds");
    return &bytes[address];
  }
};

struct Shared {
  static const unsigned char* read(Warp& warp, uint64_t address, size_t size, int lane) {
    return warp.block->shared.read(address, size, thread_of(warp, lane));
  }
  static unsigned char* write(Warp& warp, uint64_t address, size_t size, int lane) {
    return warp.block->shared.write(address, size, thread_of(warp, lane));
  }
  static unsigned char* update(Warp& warp, uint64_t address, size_t size, int lane) {
    return warp.block->shared.update(address, size, thread_of(warp, lane));
  }
};

struct Global {
  static const unsigned char* read(Warp& warp, uint64_t address, size_t size, int lane) {
    return warp.block->global.read(address, size, thread_of(warp, lane));
  }
  static unsigned char* write(Warp& warp, uint64_t address, size_t size, int lane) {
    ++warp.block->counts.stores[size];
    return warp.block->global.write(address, size, thread_of(warp, lane));
  }
  static unsigned char* update(Warp& warp, uint64_t address, size_t size, int lane) {
    return warp.block->global.update(address, size, thread_of(warp, lane));
  }
};

template <class Space>
void load(Warp& warp, const Instruction& i, uint32_t active) {
  const size_t size = static_cast<size_t>(i.type.size * i.count);
  for_lanes(active, [&](int lane) {
    const unsigned char* const from = Space::read(warp, address_of(warp, i, lane), size, lane);
    for (int k = 0; k < i.count; ++k)
      warp.put(i.out[static_cast<size_t>(k)], lane, number_at(from + k * i.type.size, i.type));
  });
}

template <class Space>
void store(Warp& warp, const Instruction& i, uint32_t active) {
  const size_t size = static_cast<size_t>(i.type.size * i.count);
  for_lanes(active, [&](int lane) {
    unsigned char* const to = Space::write(warp, address_of(warp, i, lane), size, lane);
    for (int k = 0; k < i.count; ++k) {
      const int64_t value = warp.get(i.in[static_cast<size_t>(k) + 1], lane, i.type);
      put_number(to + k * i.type.size, i.type.size, value);
    }
  });
}

// Raises numbers in memory, lane by lane, and gives what was there.
template <class Space>
void raise(Warp& warp, const Instruction& i, uint32_t active) {
  for_lanes(active, [&](int lane) {
    unsigned char* const at = Space::update(warp, address_of(warp, i, lane), 4, lane);
    const uint32_t before = static_cast<uint32_t>(number_at(at, {4, false}));
    put_number(at, 4, std::max(before, warp.lanes<uint32_t>(i.in[1])[lane]));
    warp.lanes<uint32_t>(i.out[0])[lane] = before;
  });
}

template <class Whole, class Part>
void unpack(Warp& warp, const Instruction& i, uint32_t active) {
  constexpr int parts = sizeof(Whole) / sizeof(Part);
  for_lanes(active, [&](int lane) {
    const Whole whole = warp.lanes<Whole>(i.in[0])[lane];
    for (int k = 0; k < parts; ++k)
      warp.lanes<Part>(i.out[static_cast<size_t>(k)])[lane] =
          static_cast<Part>(whole >> (8 * sizeof(Part) * static_cast<size_t>(k)));
  });
}

template <class Whole, class Part>
void pack(Warp& warp, const Instruction& i, uint32_t active) {
  constexpr int parts = sizeof(Whole) / sizeof(Part);
  for_lanes(active, [&](int lane) {
    Whole whole = 0;
    for (int k = 0; k < parts; ++k)
      whole |= Whole{warp.lanes<Part>(i.in[static_cast<size_t>(k)])[lane]}
               << (8 * sizeof(Part) * static_cast<size_t>(k));
    warp.lanes<Whole>(i.out[0])[lane] = whole;
  });
}

// Each lane's value of the lane that it names. All lanes are here: the machine has seen to that.
void shuffle(Warp& warp, const Instruction& i, uint32_t active) {
  std::array<uint32_t, kLanes> values;
  std::memcpy(values.data(), warp.lanes<uint32_t>(i.in[0]), sizeof values);
  for_lanes(active, [&](int lane) {
    const uint32_t clamp = warp.lanes<uint32_t>(i.in[2])[lane];
    const uint32_t segment = clamp >> 8 & 31, index = warp.lanes<uint32_t>(i.in[1])[lane];
    const uint32_t first = static_cast<uint32_t>(lane) & segment;
    const uint32_t last = first | (clamp & 31 & ~segment);
    const uint32_t source = first | (index & 31 & ~segment);
    const bool is_there = source <= last;
    const uint32_t from = is_there ? source : static_cast<uint32_t>(lane);
    if (!(active >> from & 1)) throw Fault("a shuffle reads a lane that takes no part");
    warp.lanes<uint32_t>(i.out[0])[lane] = values[from];
    warp.lanes<bool>(i.out[1])[lane] = is_there;
  });
}

class Table {
 public:
  Table() {
    words<uint16_t, int16_t>("16", "usb");
    words<uint32_t, int32_t>("32", "usbf");
    words<uint64_t, int64_t>("64", "usbf");
    products<uint16_t, uint32_t>("u16");
    products<int16_t, int32_t>("s16");
    products<uint32_t, uint64_t>("u32");
    products<int32_t, int64_t>("s32");
    products<uint64_t, unsigned __int128>("u64");
    products<int64_t, __int128>("s64");
    predicates();
    bytes();
    floats<float>("f32");
    // Off by one unit in the last place or by none, as a GPU's may be.
    add<float, float>("rcp.approx.ftz.f32", [](float a) {
      const float right = 1.0f / a;
      uint32_t bits;
      std::memcpy(&bits, &right, sizeof bits);
      const uint32_t off = (bits * 2654435761u >> 16) % 3;
      if (std::isnormal(a) && std::isnormal(right)) bits += off - 1;
      float found;
      std::memcpy(&found, &bits, sizeof found);
      return found;
    });
    floats<double>("f64");
    conversions();
    spaces();
    atomics();
    control();
  }

  std::unordered_map<std::string, Definition> table;

 private:
  template <class Out, class... In, class F>
  void add(const std::string& name, F) {
    table[name] = {map<F, Out, In...>, Flow::Next, {int{sizeof(Out)}}, {int{sizeof(In)}...}};
  }
  // What is the same for several kinds of types: "us" and "32" are u32 and s32.
  template <class Out, class... In, class F>
  void add_kinds(const std::string& name, const std::string& kinds, const std::string& bits, F f) {
    for (const char kind : kinds) add<Out, In...>(name + "." + kind + bits, f);
  }

  template <class U, class S>
  void words(const std::string& bits, const std::string& kinds) {
    add_kinds<U, U>("mov", kinds, bits, [](U a) { return a; });
    add_kinds<U, U, U, bool>("selp", kinds, bits,
                             [](U a, U b, bool is_first) { return is_first ? a : b; });
    add_kinds<bool, U, U>("setp.eq", "usb", bits, [](U a, U b) { return a == b; });
    add_kinds<bool, U, U>("setp.ne", "usb", bits, [](U a, U b) { return a != b; });
    add_kinds<U, U, U>("add", "us", bits, [](U a, U b) { return U(wrapping(a) + wrapping(b)); });
    add_kinds<U, U, U>("sub", "us", bits, [](U a, U b) { return U(wrapping(a) - wrapping(b)); });
    add_kinds<U, U, U>("mul.lo", "us", bits, [](U a, U b) { return U(wrapping(a) * wrapping(b)); });
    add_kinds<U, U, U, U>("mad.lo", "us", bits,
                          [](U a, U b, U c) { return U(wrapping(a) * wrapping(b) + wrapping(c)); });
    add<U, U, U>("and.b" + bits, [](U a, U b) { return U(a & b); });
    add<U, U, U>("or.b" + bits, [](U a, U b) { return U(a | b); });
    add<U, U, U>("xor.b" + bits, [](U a, U b) { return U(a ^ b); });
    add<U, U>("not.b" + bits, [](U a) { return U(~a); });
    add<U, U, uint32_t>("shl.b" + bits, [](U a, uint32_t by) {
      return by >= 8 * sizeof(U) ? U(0) : U(wrapping(a) << by);
    });
    add<S, S>("neg.s" + bits, [](S a) { return S(0 - wrapping(a)); });
    add<S, S>("abs.s" + bits, [](S a) { return a < 0 ? S(0 - wrapping(a)) : a; });
    ordered<U>("u" + bits);
    ordered<S>("s" + bits);
  }

  // What depends on the sign.
  template <class T>
  void ordered(const std::string& type) {
    order<T>(type);
    add<T, T, T>("div." + type, [](T a, T b) { return divide(a, b); });
    add<T, T, T>("rem." + type,
                 [](T a, T b) { return T(wrapping(a) - wrapping(divide(a, b)) * wrapping(b)); });
    add<T, T, T>("min." + type, [](T a, T b) { return b < a ? b : a; });
    add<T, T, T>("max." + type, [](T a, T b) { return a < b ? b : a; });
    add<T, T, uint32_t>("shr." + type, [](T a, uint32_t by) {
      constexpr uint32_t most = 8 * sizeof(T) - 1;
      return by > most ? T(a < T(0) ? -1 : 0) : T(a >> by);
    });
  }
  template <class T>
  static T divide(T a, T b) {
    if (b == 0) throw Fault("an integer is divided by zero");
    if constexpr (std::is_signed_v<T>)
      if (b == -1) return T(0 - wrapping(a));
    return T(a / b);
  }
  template <class T>
  void order(const std::string& type) {
    add<bool, T, T>("setp.lt." + type, [](T a, T b) { return a < b; });
    add<bool, T, T>("setp.le." + type, [](T a, T b) { return a <= b; });
    add<bool, T, T>("setp.gt." + type, [](T a, T b) { return a > b; });
    add<bool, T, T>("setp.ge." + type, [](T a, T b) { return a >= b; });
  }

  template <class T, class Wide>
  void products(const std::string& type) {
    add<T, T, T>("mul.hi." + type,
                 [](T a, T b) { return T((Wide{a} * Wide{b}) >> (8 * sizeof(T))); });
    if constexpr (sizeof(Wide) <= 8) {
      add<Wide, T, T>("mul.wide." + type, [](T a, T b) { return Wide(Wide{a} * Wide{b}); });
      add<Wide, T, T, Wide>("mad.wide." + type, [](T a, T b, Wide c) {
        return Wide(wrapping(Wide(Wide{a} * Wide{b})) + wrapping(c));
      });
    }
  }

  void predicates() {
    add<bool, bool>("mov.pred", [](bool a) { return a; });
    add<bool, bool>("not.pred", [](bool a) { return !a; });
    add<bool, bool, bool>("and.pred", [](bool a, bool b) { return a && b; });
    add<bool, bool, bool>("or.pred", [](bool a, bool b) { return a || b; });
    add<bool, bool, bool>("xor.pred", [](bool a, bool b) { return a != b; });
  }

  // Bits of one word into another.
  template <class T>
  void insert(const std::string& name) {
    add<T, T, T, uint32_t, uint32_t>(name, [](T a, T b, uint32_t position, uint32_t length) {
      position &= 255, length &= 255;
      for (uint32_t i = 0; i < length && position + i < 8 * sizeof(T); ++i) {
        const T bit = T{1} << (position + i);
        b = (a >> i & 1) ? b | bit : b & ~bit;
      }
      return b;
    });
  }

  void bytes() {
    using u32 = uint32_t;
    add<u32, u32, u32, u32>("bfe.u32", [](u32 a, u32 position, u32 length) {
      position &= 255, length &= 255;
      const u32 shifted = position > 31 ? 0 : a >> position;
      return length > 31 ? shifted : shifted & ((1u << length) - 1);
    });
    insert<uint32_t>("bfi.b32");
    insert<uint64_t>("bfi.b64");
    add<u32, u32, u32, u32>("prmt.b32", [](u32 a, u32 b, u32 selector) {
      const uint64_t both = uint64_t{b} << 32 | a;
      u32 result = 0;
      for (int k = 0; k < 4; ++k) {
        const u32 choice = selector >> (4 * k) & 15;
        const u32 byte = static_cast<u32>(both >> (8 * (choice & 7))) & 255;
        result |= (choice & 8 ? (byte & 128 ? 255 : 0) : byte) << (8 * k);
      }
      return result;
    });
    add<u32, u32, u32, u32>("shf.l.wrap.b32", [](u32 low, u32 high, u32 by) {
      return static_cast<u32>((uint64_t{high} << 32 | low) << (by & 31) >> 32);
    });
    add<u32, u32, u32, u32>("shf.r.wrap.b32", [](u32 low, u32 high, u32 by) {
      return static_cast<u32>((uint64_t{high} << 32 | low) >> (by & 31));
    });
    table["mov.b32/unpack"] = {unpack<uint32_t, uint16_t>, Flow::Next, {2, 2}, {4}};
    table["mov.b32/pack"] = {pack<uint32_t, uint16_t>, Flow::Next, {4}, {2, 2}};
    table["mov.b64/unpack"] = {unpack<uint64_t, uint32_t>, Flow::Next, {4, 4}, {8}};
    table["mov.b64/pack"] = {pack<uint64_t, uint32_t>, Flow::Next, {8}, {4, 4}};
  }

  template <class T>
  void floats(const std::string& type) {
    order<T>(type);
    // Both are false of a NaN, as the others are.
    add<bool, T, T>("setp.eq." + type, [](T a, T b) { return a == b; });
    add<bool, T, T>("setp.ne." + type, [](T a, T b) { return a < b || a > b; });
    add<T, T, T>("add.rn." + type, [](T a, T b) { return a + b; });
    add<T, T, T>("sub.rn." + type, [](T a, T b) { return a - b; });
    add<T, T, T>("mul.rn." + type, [](T a, T b) { return a * b; });
    add<T, T, T, T>("fma.rn." + type, [](T a, T b, T c) { return std::fma(a, b, c); });
    add<T, T, T>("div.rn." + type, [](T a, T b) { return a / b; });
    add<T, T>("rcp.rn." + type, [](T a) { return T(1) / a; });
    add<T, T>("sqrt.rn." + type, [](T a) { return std::sqrt(a); });
    add<T, T>("neg." + type, [](T a) { return -a; });
    add<T, T>("abs." + type, [](T a) { return std::fabs(a); });
    // The other one if one is NaN, and -0 is less than 0.
    add<T, T, T>("min." + type, [](T a, T b) {
      if (a != a || b != b) return a != a ? b : a;
      return a < b || (a == b && std::signbit(a)) ? a : b;
    });
    add<T, T, T>("max." + type, [](T a, T b) {
      if (a != a || b != b) return a != a ? b : a;
      return a > b || (a == b && !std::signbit(a)) ? a : b;
    });
  }

  // Types of integers by their names in PTX.
  static const std::vector<std::pair<std::string, Type>>& types() {
    static const std::vector<std::pair<std::string, Type>> all = {
        {"u8", {1, false}},  {"s8", {1, true}},  {"u16", {2, false}}, {"s16", {2, true}},
        {"u32", {4, false}}, {"s32", {4, true}}, {"u64", {8, false}}, {"s64", {8, true}},
    };
    return all;
  }

  template <class T>
  void rounded(const std::string& type) {
    add<float, T>("cvt.rn.f32." + type, [](T a) { return static_cast<float>(a); });
    add<double, T>("cvt.rn.f64." + type, [](T a) { return static_cast<double>(a); });
    add<T, float>("cvt.rzi." + type + ".f32", [](float a) { return truncate<T>(a); });
    add<T, double>("cvt.rzi." + type + ".f64", [](double a) { return truncate<T>(a); });
  }

  void conversions() {
    for (const auto& [to, type] : types())
      for (const auto& [from, source] : types())
        table["cvt." + to + "." + from] = {convert, Flow::Next, {type.size}, {source.size},
                                           true,    {type},     {source},    1};
    rounded<uint32_t>("u32");
    rounded<int32_t>("s32");
    rounded<uint64_t>("u64");
    rounded<int64_t>("s64");
    add<double, float>("cvt.f64.f32", [](float a) { return static_cast<double>(a); });
    add<float, double>("cvt.rn.f32.f64", [](double a) { return static_cast<float>(a); });
    // The first operand becomes the upper half.
    add<uint32_t, float, float>("cvt.rn.f16x2.f32", [](float upper, float lower) {
      return float16(upper) << 16 | float16(lower);
    });
    add<uint32_t, float, float>("cvt.rn.bf16x2.f32", [](float upper, float lower) {
      return bfloat16(upper) << 16 | bfloat16(lower);
    });
    add<uint16_t, float, float>("cvt.rn.satfinite.e4m3x2.f32", [](float upper, float lower) {
      return static_cast<uint16_t>(e4m3(upper) << 8 | e4m3(lower));
    });
    add<uint16_t, float, float>("cvt.rn.satfinite.e5m2x2.f32", [](float upper, float lower) {
      return static_cast<uint16_t>(e5m2(upper) << 8 | e5m2(lower));
    });
    // Addresses of global memory are the same as generic ones.
    add<uint64_t, uint64_t>("cvta.to.global.u64", [](uint64_t a) { return a; });
  }

  // Without a space an address is generic: we have no generic ones but of global memory.
  void spaces() {
    auto names = types();
    for (const int size : {1, 2, 4, 8})
      names.emplace_back("b" + std::to_string(8 * size), Type{size, false});
    for (const int size : {4, 8})
      names.emplace_back("f" + std::to_string(8 * size), Type{size, false});
    for (const auto& [name, type] : names) {
      for (const int count : {1, 2, 4}) {
        if (type.size * count > 16) continue;
        const std::string rest = (count > 1 ? ".v" + std::to_string(count) : "") + "." + name;
        const std::vector<int> values(static_cast<size_t>(count), type.size);
        const Definition loads = {nullptr, Flow::Next, values, {kAddress}, true, type, {}, count};
        Definition stores = {nullptr, Flow::Next, {}, {kAddress}, true, type, {}, count};
        stores.in.insert(stores.in.end(), values.begin(), values.end());
        const auto access = [&](const char* space, Operation load, Operation store) {
          (table["ld" + (space + rest)] = loads).run = load;
          if (store) (table["st" + (space + rest)] = stores).run = store;
        };
        access(".param", load<Parameters>, nullptr);
        access(".shared", load<Shared>, store<Shared>);
        access(".global", load<Global>, store<Global>);
        access("", load<Global>, store<Global>);
      }
    }
  }

  void atomics() {
    constexpr Type word = {4, false};
    table["atom.shared.max.u32"] = {raise<Shared>, Flow::Next, {4}, {kAddress, 4}, false, word};
    table["atom.global.max.u32"] = {raise<Global>, Flow::Next, {4}, {kAddress, 4}, false, word};
  }

  void control() {
    table["bra"].flow = Flow::Branch;
    table["bra.uni"].flow = Flow::UniformBranch;
    table["ret"].flow = Flow::Return;
    table["exit"].flow = Flow::Return;
    table["bar.sync"] = {nullptr, Flow::Barrier, {}, {4}};
    table["shfl.sync.idx.b32"] = {shuffle, Flow::Shuffle, {4, 1}, {4, 4, 4, 4}};
  }
};

}  // namespace

const std::unordered_map<std::string, Definition>& instructions() {
  static const Table all;
  return all.table;
}

}  // namespace torchinit::emulator
