// Instruction sets and threads.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings/bindings.h"
#include "instruction_set.h"
#include "team.h"

namespace rookery {

namespace nb = nanobind;
using namespace nb::literals;

void bind_machine(nb::module_& m) {
  m.attr("MAX_THREADS") = kMaxThreads;
  m.def("default_threads", &default_threads,
        "Physical cores that this process may run on, and no more than its control group's quota allows.");
  m.def(
      "instruction_set", [] { return std::string(name_of(instruction_set())); },
      "The name of the instruction set in force.");
  m.def(
      "available_instruction_sets",
      [] {
        std::vector<std::string> names;
        for (InstructionSet set : available_instruction_sets()) names.emplace_back(name_of(set));
        return names;
      },
      "Names of the instruction sets that this machine runs, the slowest first.");
  m.def("force_instruction_set", &force_instruction_set, "name"_a,
        "Use one from now on, in the whole process. Raises ValueError where it is unknown or not available.");
}

}  // namespace rookery
