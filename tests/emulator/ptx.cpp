#include "ptx.h"

#include <algorithm>
#include <cctype>
#include <cstring>
#include <map>
#include <unordered_map>
#include <utility>

#include "instructions.h"

namespace torchinit::emulator {
namespace {

std::string trimmed(const std::string& text) {
  const auto begin = text.find_first_not_of(" \t\n"), end = text.find_last_not_of(" \t\n");
  return begin == std::string::npos ? "" : text.substr(begin, end - begin + 1);
}

bool starts_with(const std::string& text, const char* with) { return text.rfind(with, 0) == 0; }

// At commas that are in no brackets.
std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  std::string part;
  int depth = 0;
  for (const char c : text) {
    depth += (c == '{' || c == '[') - (c == '}' || c == ']');
    if (c == ',' && depth == 0) {
      parts.push_back(trimmed(part));
      part.clear();
    } else {
      part += c;
    }
  }
  if (!trimmed(part).empty()) parts.push_back(trimmed(part));
  return parts;
}

std::string without_comments(const std::string& text) {
  std::string kept;
  kept.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    if (text.compare(i, 2, "//") == 0) i = std::min(text.find('\n', i), text.size() - 1);
    kept += text[i];
  }
  return kept;
}

// Walks through a text, word by word.
class Scanner {
 public:
  explicit Scanner(const std::string& text) : text_(text) {}

  bool is_done() {
    skip_space();
    return at_ >= text_.size();
  }
  bool accept(char c) {
    if (is_done() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  void expect(char c) {
    if (!accept(c)) throw Fault(std::string("the PTX lacks a ") + c);
  }
  std::string word() {
    skip_space();
    const size_t begin = at_;
    while (at_ < text_.size() && (std::isalnum(text_[at_]) || std::strchr("_.$%", text_[at_])))
      ++at_;
    return text_.substr(begin, at_ - begin);
  }
  std::string until(char c) {
    const size_t end = text_.find(c, at_), begin = at_;
    if (end == std::string::npos) throw Fault(std::string("the PTX lacks a ") + c);
    at_ = end + 1;
    return trimmed(text_.substr(begin, end - begin));
  }

 private:
  void skip_space() {
    while (at_ < text_.size() && std::isspace(text_[at_])) ++at_;
  }

  const std::string& text_;
  size_t at_ = 0;
};

// Bytes of a type such as ".b32"; a predicate is one.
int width_of(const std::string& type) {
  if (type == ".pred") return 1;
  static const std::map<std::string, int> widths = {{"8", 1}, {"16", 2}, {"32", 4}, {"64", 8}};
  if (type.size() > 2 && type[0] == '.' && std::strchr("busf", type[1]))
    if (const auto found = widths.find(type.substr(2)); found != widths.end()) return found->second;
  throw Fault("no type: " + type);
}

size_t aligned(size_t offset, size_t alignment) {
  return (offset + alignment - 1) / alignment * alignment;
}

// A declaration such as ".align 8 .b8 name[16]": its name, alignment and bytes.
struct Variable {
  std::string name;
  size_t alignment = 0, size = 0;

  explicit Variable(Scanner words) {
    for (std::string word = words.word(); !word.empty(); word = words.word()) {
      if (word == ".align") {
        alignment = std::stoul(words.word());
      } else if (word == ".ptr") {  // what a pointer points to says nothing of itself
        for (word = words.word(); word == ".global" || word == ".align"; word = words.word())
          if (word == ".align") words.word();
        name = word;
      } else if (word[0] == '.') {
        size = static_cast<size_t>(width_of(word));
      } else {
        name = word;
      }
    }
    if (!alignment) alignment = size;
    if (words.accept('[')) size *= std::stoul(words.until(']'));
  }
};

// Reads the body of one kernel.
class Body {
 public:
  explicit Body(Kernel& kernel, std::unordered_map<std::string, uint64_t> symbols)
      : kernel_(kernel), symbols_(std::move(symbols)) {}

  void read(Scanner& scanner) {
    for (int depth = 1; depth > 0;) {
      if (scanner.accept('{'))
        ++depth;
      else if (scanner.accept('}'))
        --depth;
      else
        read_statement(scanner);
    }
    for (const auto& [place, label] : branches_) {
      const auto found = labels_.find(label);
      if (found == labels_.end()) throw Fault("no label: " + label);
      kernel_.code[place].target = found->second;
    }
    // Registers come first, then what is not poisoned.
    kernel_.register_bytes = aligned(registers_, 64);
    for (Instruction& instruction : kernel_.code) {
      for (Operand& operand : instruction.out) place(operand);
      for (Operand& operand : instruction.in) place(operand);
      if (instruction.is_predicated) place(instruction.predicate);
    }
    for (auto& [special, operand] : kernel_.specials) place(operand);
    mark_passes();
  }

 private:
  void read_statement(Scanner& scanner) {
    const std::string text = [&] {
      std::string word = scanner.word();
      if (!word.empty() && scanner.accept(':')) {
        if (!labels_.emplace(word, static_cast<int>(kernel_.code.size())).second)
          throw Fault("a label is there twice: " + word);
        return std::string();
      }
      return trimmed(word + " " + scanner.until(';'));
    }();
    if (text.empty() || starts_with(text, ".pragma")) return;
    try {
      if (starts_with(text, ".reg "))
        declare_registers(text.substr(5));
      else if (starts_with(text, ".shared "))
        declare_shared(text.substr(8));
      else
        read_instruction(text);
    } catch (const Fault& fault) {
      throw Fault(std::string(fault.what()) + " (`" + text + "`)");
    }
  }

  void declare_registers(const std::string& text) {
    Scanner words(text);
    const int width = width_of(words.word());
    const std::string name = words.word();
    if (words.accept('<')) {
      const int count = std::stoi(words.until('>'));
      for (int i = 0; i < count; ++i) add_register(name + std::to_string(i), width);
    } else if (const auto found = registers_of_.find(name);
               found == registers_of_.end() || found->second.width != width) {
      add_register(name, width);  // each scope may have its own
    }
  }
  Operand add_register(const std::string& name, int width) {
    // Eight times the lanes of a byte keep all of them aligned.
    const Operand operand{static_cast<int>(registers_), width};
    registers_ += static_cast<size_t>(kLanes * width);
    registers_of_[name] = operand;
    return operand;
  }

  void declare_shared(const std::string& text) {
    const Variable variable{Scanner(text)};
    kernel_.shared_bytes = aligned(kernel_.shared_bytes, variable.alignment);
    symbols_[variable.name] = kernel_.shared_bytes;
    kernel_.shared_bytes += variable.size;
  }

  void read_instruction(const std::string& text) {
    Instruction instruction;
    std::string rest = text;
    if (rest[0] == '@') {
      const size_t end = rest.find_first_of(" \t");
      instruction.is_predicated = true;
      instruction.is_negated = rest[1] == '!';
      const size_t begin = instruction.is_negated ? 2 : 1;
      instruction.predicate = operand(rest.substr(begin, end - begin), 1, false);
      rest = trimmed(rest.substr(end));
    }
    const size_t end = rest.find_first_of(" \t\n");
    std::string name = rest.substr(0, end);
    std::vector<std::string> operands;
    if (end != std::string::npos) operands = split(rest.substr(end));
    if (starts_with(name, "mov.") && operands.size() == 2)
      name += operands[0][0] == '{' ? "/unpack" : operands[1][0] == '{' ? "/pack" : "";
    const auto found = instructions().find(name);
    if (found == instructions().end()) throw Fault("an instruction that is not known: " + name);
    const Definition& definition = found->second;
    instruction.run = definition.run;
    instruction.flow = definition.flow;
    instruction.type = definition.type;
    instruction.source = definition.source;
    instruction.count = definition.count;
    if (definition.flow == Flow::Branch || definition.flow == Flow::UniformBranch) {
      if (operands.size() != 1) throw Fault("a branch to one label, please");
      branches_.emplace_back(kernel_.code.size(), operands[0]);
    } else {
      set_operands(instruction, definition, operands);
    }
    if (definition.flow == Flow::Barrier && operands[0] != "0")
      throw Fault("a barrier other than 0");
    if (name.find(".shared.") != std::string::npos)
      kernel_.shared_granule =
          std::min(kernel_.shared_granule, static_cast<size_t>(definition.type.size));
    kernel_.code.push_back(instruction);
    kernel_.texts.push_back(text);
  }

  void set_operands(Instruction& instruction, const Definition& definition,
                    std::vector<std::string> operands) {
    std::vector<std::string> out, in;
    for (size_t i = 0; i < operands.size(); ++i) {
      const std::string& text = operands[i];
      auto& to = i == 0 && !definition.out.empty() ? out : in;
      const size_t bar = text.find('|');
      if (text[0] == '{') {
        for (const std::string& part : split(text.substr(1, text.size() - 2))) to.push_back(part);
      } else if (bar != std::string::npos) {
        to = {text.substr(0, bar), text.substr(bar + 1)};
      } else {
        to.push_back(text);
      }
    }
    if (definition.flow == Flow::Shuffle && out.size() == 1) out.push_back("_");
    if (out.size() != definition.out.size() || in.size() != definition.in.size())
      throw Fault("a wrong number of operands");
    for (size_t i = 0; i < out.size(); ++i) {
      instruction.out[i] = operand(out[i], definition.out[i], definition.is_wider);
      if (instruction.out[i].place < 0) throw Fault("it writes to what is no register");
    }
    for (size_t i = 0; i < in.size(); ++i) {
      if (definition.in[i] == kAddress) {
        if (in[i].front() != '[' || in[i].back() != ']') throw Fault("an address without brackets");
        std::string base = in[i].substr(1, in[i].size() - 2);
        if (const size_t plus = base.find('+'); plus != std::string::npos) {
          instruction.offset = std::stoll(base.substr(plus + 1));
          base.resize(plus);
        }
        instruction.in[i] = operand(trimmed(base), kAddress, false);
      } else {
        instruction.in[i] = operand(in[i], definition.in[i], definition.is_wider);
      }
    }
  }

  // Negative places are those of constants and special registers, until all registers are known.
  Operand operand(const std::string& text, int width, bool is_wider) {
    if (text == "_") return add_register("_" + std::to_string(registers_), width);
    if (const auto found = registers_of_.find(text); found != registers_of_.end()) {
      const Operand& there = found->second;
      const bool fits = width == kAddress ? there.width >= 4
                        : is_wider        ? there.width >= width
                                          : there.width == width;
      if (!fits) throw Fault("a register of a wrong width: " + text);
      return there;
    }
    static const std::map<std::string, Special> specials = {
        {"%tid.x", Special::Tid},        {"%ntid.x", Special::NTid},
        {"%ctaid.x", Special::CtaidX},   {"%ctaid.y", Special::CtaidY},
        {"%ctaid.z", Special::CtaidZ},   {"%nctaid.x", Special::NctaidX},
        {"%nctaid.y", Special::NctaidY}, {"%nctaid.z", Special::NctaidZ},
    };
    if (const auto found = specials.find(text); found != specials.end()) {
      if (width != 4) throw Fault("a special register has 32 bits");
      for (const auto& [special, there] : kernel_.specials)
        if (special == found->second) return there;
      const Operand there = add_constant(0, 4, false);
      kernel_.specials.emplace_back(found->second, there);
      return there;
    }
    if (const auto found = symbols_.find(text); found != symbols_.end())
      return add_constant(found->second, width == kAddress ? 8 : width, true);
    return add_constant(number(text, width), width == kAddress ? 8 : width, true);
  }

  static uint64_t number(const std::string& text, int width) {
    const bool is_single = starts_with(text, "0f"), is_double = starts_with(text, "0d");
    if (is_single || is_double) {
      if (width != (is_single ? 4 : 8)) throw Fault("a constant of a wrong width: " + text);
      return std::stoull(text.substr(2), nullptr, 16);
    }
    std::string digits = text;
    if (!digits.empty() && digits.back() == 'U') digits.pop_back();
    size_t used = 0;
    const bool is_negative = !digits.empty() && digits[0] == '-';
    if (digits.empty() || !std::isdigit(digits[is_negative]))
      throw Fault("an operand that is not known: " + text);
    const bool is_hexadecimal = starts_with(digits, "0x");
    const uint64_t value = std::stoull(digits.substr(is_negative), &used, is_hexadecimal ? 16 : 10);
    if (used + is_negative != digits.size()) throw Fault("an operand that is not known: " + text);
    return is_negative ? 0 - value : value;
  }

  Operand add_constant(uint64_t value, int width, bool is_shared) {
    const auto key = std::make_pair(value, width);
    if (is_shared)
      if (const auto found = constants_of_.find(key); found != constants_of_.end())
        return found->second;
    auto& bytes = kernel_.constants;
    const Operand there{-1 - static_cast<int>(bytes.size()), width};
    for (int lane = 0; lane < kLanes; ++lane)
      for (int i = 0; i < width; ++i) bytes.push_back(static_cast<unsigned char>(value >> (8 * i)));
    if (is_shared) constants_of_[key] = there;
    return there;
  }

  void place(Operand& operand) const {
    if (operand.place < 0)
      operand.place = static_cast<int>(kernel_.register_bytes) - 1 - operand.place;
  }

  // The branches back of the innermost loops that store to global memory.
  void mark_passes() {
    const int size = static_cast<int>(kernel_.code.size());
    std::vector<int> stores(static_cast<size_t>(size) + 1, 0);  // before each instruction
    for (int i = 0; i < size; ++i) {
      const std::string& text = kernel_.texts[static_cast<size_t>(i)];
      const bool is_store =
          text.find("st.") != std::string::npos && text.find("st.shared") == std::string::npos;
      stores[static_cast<size_t>(i) + 1] = stores[static_cast<size_t>(i)] + is_store;
    }
    std::vector<std::pair<int, int>> loops;  // that store
    for (int i = 0; i < size; ++i) {
      const int target = kernel_.code[static_cast<size_t>(i)].target;
      if (target >= 0 && target <= i &&
          stores[static_cast<size_t>(i) + 1] > stores[static_cast<size_t>(target)])
        loops.emplace_back(target, i);
    }
    for (const auto& [begin, end] : loops) {
      bool is_innermost = true;
      for (const auto& [other_begin, other_end] : loops)
        is_innermost = is_innermost && (other_begin < begin || other_end > end ||
                                        (other_begin == begin && other_end == end));
      kernel_.code[static_cast<size_t>(end)].ends_pass = is_innermost;
    }
  }

  Kernel& kernel_;
  std::unordered_map<std::string, uint64_t> symbols_;
  std::unordered_map<std::string, Operand> registers_of_;
  std::unordered_map<std::string, int> labels_;
  std::map<std::pair<uint64_t, int>, Operand> constants_of_;
  std::vector<std::pair<size_t, std::string>> branches_;
  size_t registers_ = 0;
};

Kernel read_kernel(Scanner& scanner) {
  Kernel kernel;
  kernel.name = scanner.word();
  std::unordered_map<std::string, uint64_t> symbols;
  scanner.expect('(');
  for (const std::string& text : split(scanner.until(')'))) {
    if (!starts_with(text, ".param ")) throw Fault("no parameter: " + text);
    const std::string declared = text.substr(7);
    const Variable variable{Scanner(declared)};
    const size_t offset = aligned(kernel.parameter_bytes, variable.alignment);
    kernel.parameters.push_back({offset, variable.size});
    kernel.parameter_bytes = offset + variable.size;
    symbols[variable.name] = offset;
  }
  while (!scanner.accept('{')) {
    const std::string word = scanner.word();
    if (word == ".maxntid") {
      kernel.most_threads = std::stoi(scanner.word());
      while (scanner.accept(','))
        if (scanner.word() != "1") throw Fault("a block of more than one dimension");
    } else if (word == ".minnctapersm") {
      kernel.least_blocks = std::stoi(scanner.word());
    } else {
      throw Fault("a directive that is not known: " + word);
    }
  }
  Body(kernel, std::move(symbols)).read(scanner);
  return kernel;
}

}  // namespace

std::vector<Kernel> read_ptx(const std::string& text) {
  const std::string code = without_comments(text);
  std::vector<Kernel> kernels;
  Scanner scanner(code);
  while (!scanner.is_done()) {
    const std::string word = scanner.word();
    if (word == ".version" || word == ".target" || word == ".address_size")
      scanner.word();
    else if (word == ".entry")
      kernels.push_back(read_kernel(scanner));
    else if (word != ".visible" && word != ".weak")
      throw Fault("a directive that is not known: " + word);
  }
  return kernels;
}

}  // namespace torchinit::emulator
