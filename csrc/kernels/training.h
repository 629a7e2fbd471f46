// The table of training's kernels.
#pragma once

#include "kernels/channels.h"
#include "kernels/heads_backward.h"

namespace rookery::ROOKERY_LANES {
namespace {

constexpr TrainingKernels training_kernels() {
  return {
      .forward_bytes = forward_bytes,
      .backward_bytes = backward_bytes,
      .forward = {forward<Heads::rwkv6>, forward<Heads::rwkv7>},
      .backward = {backward<Heads::rwkv6>, backward<Heads::rwkv7>},
      .forward_channels = forward_channels,
      .backward_channels = backward_channels,
      .add_rows = add_rows,
  };
}

}  // namespace
}  // namespace rookery::ROOKERY_LANES
