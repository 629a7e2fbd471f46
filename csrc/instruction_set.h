// Which instructions the machine has, and which the kernels use.
#pragma once

#include <string>
#include <vector>

namespace rookery {

enum class InstructionSet { portable, avx2, avx2_vnni, avx512 };

const char* name_of(InstructionSet set);

// Those that this machine runs and this build has kernels for, the slowest first.
std::vector<InstructionSet> available_instruction_sets();

// The one in force: the last that is available, unless one was forced, by a call or by ROOKERY_INSTRUCTION_SET.
// Throws std::invalid_argument where the forced one is unknown or not available.
InstructionSet instruction_set();
void force_instruction_set(const std::string& name);

}  // namespace rookery
