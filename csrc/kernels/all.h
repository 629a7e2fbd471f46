// Every kernel, and their table. Included once for each instruction set, after its lanes.
//
// Nothing here may instantiate a template or call an inline function of another header that is not a lane's: the
// linker would keep one copy of it for all instruction sets, and perhaps the one that this machine cannot run.
#pragma once

#include "kernels.h"
#include "kernels/multiply.h"
#include "kernels/probe.h"
#include "kernels/sample.h"
#include "kernels/inference.h"
#include "kernels/quantize.h"
#include "kernels/training.h"
#include "kernels/mixing.h"

namespace rookery::ROOKERY_LANES {

extern const Kernels kernels;
const Kernels kernels = {
    .matrix = matrix_kernels(),
    .probe = probe_kernels(),
    .sampling = sampling_kernels(),
    .step = step_kernels(),
    .quantize = quantize_kernels(),
    .training = training_kernels(),
    .mixing = mixing_kernels(),
};

}  // namespace rookery::ROOKERY_LANES
