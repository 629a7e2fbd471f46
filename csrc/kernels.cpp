#include "kernels.h"

#include "instruction_set.h"

namespace rookery {

const Kernels& kernels() {
  switch (instruction_set()) {
#if defined(__x86_64__)
    case InstructionSet::avx512:
      return avx512::kernels;
    case InstructionSet::avx2_vnni:
      return avx2_vnni::kernels;
    case InstructionSet::avx2:
      return avx2::kernels;
#endif
    default:
      return portable::kernels;
  }
}

}  // namespace rookery
