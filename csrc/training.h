// Training on the CPU: the recurrences forward and backward, over tensors that someone else owns.
//
// The forward pass keeps what the backward pass needs: the state before each chunk of tokens, and what RWKV-7 read
// from it at each token. The backward pass takes the chunks from the last to the first. It computes the states of
// a chunk again from the one kept, side by side in the second-level cache, and walks back over them token by token:
// exact for any decay.
//
// The forward pass has the columns of a state in lanes: value channels, which do not depend on each other, so that
// no sum goes across lanes. The backward pass has key channels in lanes, and a row for each value channel: then of
// seven sums a token only two go across, and sixteen rows are summed up together.
//
// The equations are those of rookery.ops.wkv4 to wkv7, and the letters too: B T H K V, d for a gradient.
#pragma once

#include <cstdint>

// For what the kernels call: of a function that is not inlined, the linker would keep the copy of one instruction set.
#define ROOKERY_ALWAYS_INLINE __attribute__((always_inline))

namespace rookery {

constexpr int64_t kChunkTokens = 16;

enum class Number : uint8_t { fp32, bf16 };

// [B, T, H, channels], or [B, T, channels] with one head. Channels lie together; the strides count numbers.
struct Sequence {
  void* data = nullptr;
  int64_t batch = 0, token = 0, head = 0;
  Number number = Number::fp32;

  ROOKERY_ALWAYS_INLINE int64_t at(int64_t b, int64_t t, int64_t h) const { return b * batch + t * token + h * head; }
};

struct Sizes {
  int64_t batch, tokens, heads, keys, values;

  ROOKERY_ALWAYS_INLINE int64_t chunks() const { return (tokens + kChunkTokens - 1) / kChunkTokens; }
};

// RWKV-6 and RWKV-7 (RWKV-5 is RWKV-6 with a token stride of 0 in log_w).
struct HeadsInput {
  Sizes size;
  Sequence r, log_w, k, v;
  Sequence a, b;                    // RWKV-7
  const float* u = nullptr;         // RWKV-6: [H, K]
  const float* state = nullptr;     // [B, H, K, V]
  const uint8_t* starts = nullptr;  // [B, T], 1 where a document starts; null: nowhere
};

// What the forward pass keeps. Null: nothing is kept.
struct HeadsKept {
  float* states = nullptr;  // [B, H, chunks, K, V], before each chunk
  float* found = nullptr;   // RWKV-7: a_t S_{t-1}, [B, T, H, V]
};

struct HeadsOutput {
  Sequence y;
  float* state = nullptr;  // [B, H, K, V]
};

struct HeadsGradients {
  Sequence dy;
  const float* dstate_after = nullptr;  // [B, H, K, V], or null for zeros
  Sequence dr, dlog_w, dk, dv, da, db;
  float* du = nullptr;      // RWKV-6: [B, H, K]
  float* dstate = nullptr;  // [B, H, K, V]
};

// RWKV-4. Sequences have one head of A channels.
struct ChannelsInput {
  int64_t batch = 0, tokens = 0, channels = 0;
  const float *log_w = nullptr, *u = nullptr;  // [A]
  Sequence k, v;
  const float* state = nullptr;  // [B, 3, A]
  const uint8_t* starts = nullptr;

  ROOKERY_ALWAYS_INLINE int64_t chunks() const { return (tokens + kChunkTokens - 1) / kChunkTokens; }
};

struct ChannelsOutput {
  Sequence y;
  float* state = nullptr;  // [B, 3, A]
  float* kept = nullptr;   // [B, chunks, 4, A]: a, b, and p as a sum of two floats, before each chunk; or null
};

struct ChannelsGradients {
  const float* kept = nullptr;
  Sequence dy;
  const float* dstate_after = nullptr;  // [B, 3, A], or null for zeros
  Sequence dk, dv;
  float *dlog_w = nullptr, *du = nullptr;  // [B, A]
  float* dstate = nullptr;                 // [B, 3, A]
};

enum class Heads : uint8_t { rwkv6, rwkv7 };

void heads_forward(Heads which, const HeadsInput& x, const HeadsKept& kept, const HeadsOutput& out, int threads);
void heads_backward(Heads which, const HeadsInput& x, const HeadsKept& kept, const HeadsGradients& grad, int threads);
void channels_forward(const ChannelsInput& x, const ChannelsOutput& out, int threads);
void channels_backward(const ChannelsInput& x, const ChannelsGradients& grad, int threads);

// What an instruction set has for this. Value channels [begin, end) of a head start at a multiple of 16, as does
// `channel`; `memory` is the thread's own.
struct TrainingKernels {
  int64_t (*forward_bytes)(const Sizes& size);
  int64_t (*backward_bytes)(const Sizes& size);
  void (*forward[2])(const HeadsInput& x, const HeadsKept& kept, const HeadsOutput& out, int64_t b, int64_t h,
                     int64_t begin, int64_t end, void* memory);
  void (*backward[2])(const HeadsInput& x, const HeadsKept& kept, const HeadsGradients& grad, int64_t b, int64_t h,
                      int64_t begin, int64_t end, void* memory);
  void (*forward_channels)(const ChannelsInput& x, const ChannelsOutput& out, int64_t b, int64_t channel);
  void (*backward_channels)(const ChannelsInput& x, const ChannelsGradients& grad, int64_t b, int64_t channel);
  // The sum of `parts` rows of n floats, `stride` apart, into a row of a sequence.
  void (*add_rows)(const float* first, int64_t stride, int64_t parts, int64_t n, const Sequence& to, int64_t place);
};

}  // namespace rookery
