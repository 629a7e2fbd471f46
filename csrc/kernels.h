// The tables of kernels: one for each instruction set.
#pragma once

#include "matrix.h"
#include "mixing.h"
#include "probe.h"
#include "sampling.h"
#include "step_kernels.h"
#include "quantize.h"
#include "training.h"

namespace rookery {

struct Kernels {
  MatrixKernels matrix;
  ProbeKernels probe;
  SamplingKernels sampling;
  StepKernels step;
  QuantizeKernels quantize;
  TrainingKernels training;
  MixingKernels mixing;
};

// Of the instruction set in force (instruction_set.h).
const Kernels& kernels();

namespace portable {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace avx2_vnni {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}

}  // namespace rookery
