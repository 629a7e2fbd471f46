// Loops that do one thing as fast as the instruction set can: read memory, or multiply and add.
#pragma once

#include "lanes/functions.h"
#include "probe.h"

namespace rookery::ROOKERY_LANES {
namespace {

// Independent sums: enough to hide the latency of an instruction, few enough to stay in registers.
#if defined(__AVX512F__)
constexpr int kProbeSums = 12;
#else
constexpr int kProbeSums = 6;
#endif

// Streams that are read side by side. One to four read the same number of bytes in a second, more of them fewer.
constexpr int kStreams = 2;

// The compiler must take for unknown where p points, and so load again what it has loaded before.
template <class T>
ROOKERY_INLINE void forget(const T*& p) {
  __asm__ volatile("" : "+r"(p));
}

float probe_read(const uint8_t* memory, int64_t bytes) {
  int64_t part = bytes / kStreams;
  Floats found[kStreams][2];
  for (int s = 0; s < kStreams; s++) found[s][0] = found[s][1] = zero();
  for (int64_t at = 0; at < part; at += 128)
    for (int s = 0; s < kStreams; s++)
      for (int half = 0; half < 2; half++)
        found[s][half] = max(found[s][half], load(reinterpret_cast<const float*>(memory + s * part + at + 64 * half)));
  for (int s = 0; s < kStreams; s++) found[0][0] = max(found[0][0], max(found[s][0], found[s][1]));
  return maximum(found[0][0]);
}

// x has 4 bytes for each sum; that the weights are the same is nothing to an instruction.
float probe_int8(int64_t rounds, const int8_t* x) {
  alignas(64) uint8_t ones[64];
  for (int i = 0; i < 64; i++) ones[i] = 1;
  Bytes weights = load_bytes(ones);
  Ints sums[kProbeSums];
  for (int n = 0; n < kProbeSums; n++) sums[n] = start_q8(0);
  for (int64_t round = 0; round < rounds; round++) {
    for (int n = 0; n < kProbeSums; n++) sums[n] = dot_q8(sums[n], weights, x + 4 * n);
    forget(x);
  }
  Floats total = zero();
  for (int n = 0; n < kProbeSums; n++) total = total + to_floats(sums[n]);
  return sum(total);
}

float probe_bf16(int64_t rounds, const uint16_t* x) {
  alignas(64) uint16_t ones[32];
  for (int i = 0; i < 32; i++) ones[i] = 0x3f80;
  Bytes weights = load_bytes(ones);
  Floats sums[kProbeSums];
  for (int n = 0; n < kProbeSums; n++) sums[n] = zero();
  for (int64_t round = 0; round < rounds; round++) {
    for (int n = 0; n < kProbeSums; n++) sums[n] = dot_bf16(sums[n], weights, x + 2 * n);
    forget(x);
  }
  for (int n = 1; n < kProbeSums; n++) sums[0] = sums[0] + sums[n];
  return sum(sums[0]);
}

float probe_fp32(int64_t rounds, const float* x) {
  Floats weights = broadcast(1.0f), sums[kProbeSums];
  for (int n = 0; n < kProbeSums; n++) sums[n] = zero();
  for (int64_t round = 0; round < rounds; round++) {
    for (int n = 0; n < kProbeSums; n++) sums[n] = fma(weights, broadcast(x[n]), sums[n]);
    forget(x);
  }
  for (int n = 1; n < kProbeSums; n++) sums[0] = sums[0] + sums[n];
  return sum(sums[0]);
}

constexpr ProbeKernels probe_kernels() { return {probe_read, probe_int8, probe_bf16, probe_fp32, kProbeSums}; }

}  // namespace
}  // namespace rookery::ROOKERY_LANES
