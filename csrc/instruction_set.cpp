#include "instruction_set.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace rookery {
namespace {

constexpr InstructionSet kAll[] = {InstructionSet::portable, InstructionSet::avx2, InstructionSet::avx2_vnni,
                                   InstructionSet::avx512};

bool machine_has(InstructionSet set) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  switch (set) {
    case InstructionSet::portable:
      return true;
    case InstructionSet::avx2:
      return avx2;
    case InstructionSet::avx2_vnni: {
      // Compilers of 2022 know no name for AVX-VNNI: CPUID leaf 7, subleaf 1, EAX bit 4.
      unsigned a = 7, b = 0, c = 1, d = 0;
      __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
      return avx2 && (a & 0x10) != 0;
    }
    case InstructionSet::avx512:
      return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
  }
  return false;
#else
  return set == InstructionSet::portable;
#endif
}

InstructionSet by_name(const std::string& name) {
  std::string known;
  for (InstructionSet set : kAll) {
    if (name == name_of(set)) {
      if (!machine_has(set)) throw std::invalid_argument("this machine has no " + name);
      return set;
    }
    known += (known.empty() ? "" : ", ") + std::string(name_of(set));
  }
  throw std::invalid_argument("there is no instruction set '" + name + "'; there are " + known);
}

InstructionSet first_choice() {
  const char* forced = std::getenv("ROOKERY_INSTRUCTION_SET");
  return forced != nullptr && *forced != 0 ? by_name(forced) : available_instruction_sets().back();
}

std::atomic<InstructionSet>& current() {
  static std::atomic<InstructionSet> set{first_choice()};
  return set;
}

}  // namespace

const char* name_of(InstructionSet set) {
  switch (set) {
    case InstructionSet::portable:
      return "portable";
    case InstructionSet::avx2:
      return "avx2";
    case InstructionSet::avx2_vnni:
      return "avx2_vnni";
    case InstructionSet::avx512:
      return "avx512";
  }
  return "unknown";
}

std::vector<InstructionSet> available_instruction_sets() {
  std::vector<InstructionSet> result;
  for (InstructionSet set : kAll)
    if (machine_has(set)) result.push_back(set);
  return result;
}

InstructionSet instruction_set() { return current(); }
void force_instruction_set(const std::string& name) { current() = by_name(name); }

}  // namespace rookery
