// One pass of up to kPassTokens tokens through a model, and the phases that its layers are made of.
//
// Every member of the team runs the whole pass, and in each phase its share of it. A phase that multiplies shares
// out the rows of its matrices; whoever made rows of an output also applies what follows them channel by channel,
// and converts them to columns of the next matrix's input. So a barrier is needed only where all columns of an
// input must be there.
#pragma once

#include <atomic>
#include <cstdint>

#include "kernels.h"
#include "model/weights.h"
#include "team.h"

namespace rookery {

// Tokens of a pass. Prompts take the smaller number at a time: it needs half the memory, and costs 2 % of the speed.
// There are more where there are more streams, so that a step of all of them reads the weights once.
constexpr int64_t kPassTokens = 256, kPromptTokens = 128;
// Where many texts are scored, passes are full, and of whole tiles of 12 tokens.
constexpr int64_t kScoredTokens = 252;

// The state of several streams (slots), as rookery.state has it: [layer][slot][...] of each part.
struct StateArrays {
  float* time_shift;
  float* channel_shift;
  float* wkv;
  int64_t slots;
};

// In the order in which a layer comes upon them.
enum class Part { time_shift, wkv, channel_shift };

// A part of a state that holds NaN or infinity.
struct Fault {
  Part part;
  int64_t layer, slot;
};

// The tokens of one stream in a pass: adjoining rows.
struct Span {
  int64_t row, count, slot;
  const StateArrays* before;  // where the stream's state is found
};

struct Pass {
  int64_t tokens;
  const Span* spans;
  int64_t num_spans;
  const int32_t* span_of_row;
  const StateArrays* after;     // where states are written to
  float* x;                     // [tokens][width]: what layers add to
  float* normal;                // [tokens][width]: what the last `shift` normalised
  float* output;                // [tokens][width]: room for `add_output`
  std::atomic<int64_t>* fault;  // `code_of` the first one
  // The rows of x that a phase is about, in order, where they are not all: `tokens` of them.
  const int32_t* rows = nullptr;

  int64_t row(int64_t token) const { return rows == nullptr ? token : rows[token]; }
};

// Memory of one member for itself.
struct Own {
  float* rows[3];  // [width] each
  void* multiply;
};

// What a member has at hand in a pass.
struct Context {
  const Config& config;
  const Pass& pass;
  const Member& member;
  const Own& own;
  const StepKernels& step;

  const float* before(Part part, int64_t layer, const Span& span) const {
    return place(*span.before, part, layer, span);
  }
  float* after(Part part, int64_t layer, const Span& span) const { return place(*pass.after, part, layer, span); }
  void report(Part part, int64_t layer, const Span& span) const;

 private:
  float* place(const StateArrays& state, Part part, int64_t layer, const Span& span) const {
    int64_t index = layer * state.slots + span.slot;
    if (part == Part::time_shift) return state.time_shift + index * config.width;
    if (part == Part::channel_shift) return state.channel_shift + index * config.width;
    return state.wkv + index * config.wkv_size();
  }
};

// Numbers of faults; what comes first in a pass has the smaller one.
constexpr int64_t kNoFault = INT64_MAX;
int64_t code_of(const Fault& fault);
Fault fault_of(int64_t code);

// An input that `shift` makes: x + (previous x - x) * weight, converted for a matrix.
struct Shifted {
  const float* weight;
  const OperandBuffer* input;
  Type type;
};

// Normalises x, and makes inputs of it and what it was one token before. `keep_shift`, which may only run after the
// next barrier, checks that part of the state, and writes what the next call's first token has before it: the last
// row of every span must be there.
void shift(const Context& context, Part part, int64_t layer, const Norm& norm, const Shifted* inputs, int count);
void keep_shift(const Context& context, Part part, int64_t layer);

// The input of the layer one token before a row: of `normal`, or of the state. After `shift` and a barrier.
const float* previous(const Context& context, Part part, int64_t layer, int64_t row);

enum class Activation { none, tanh, sigmoid, squared_relu };

// A matrix times an input, and what is done with the output at once.
struct Job {
  const Matrix* matrix;
  const OperandBuffer* input;
  float* output;  // [tokens][rows]
  Activation activation = Activation::none;
  const OperandBuffer* next = nullptr;  // converts the output for a matrix of next_type
  Type next_type = Type::fp32;
};

// Shares the rows of all jobs among the members, by bytes of weights.
void run_jobs(const Context& context, const Job* jobs, int count);

// Rows [begin, end) of a matrix times an input, output [tokens][rows].
void multiply_rows(const Context& context, const Matrix& matrix, const OperandBuffer& input, float* output,
                   int64_t begin, int64_t end);

// x += matrix input; with a gate, x += sigmoid(gate gate_input) * (matrix input).
void add_output(const Context& context, const Matrix& matrix, const OperandBuffer& input, const Matrix* gate = nullptr,
                const OperandBuffer* gate_input = nullptr, float* gate_output = nullptr);

// This member's channels of the attention width: whole heads, and whole blocks of the next matrix's input.
Share share_heads(const Context& context);

// Converts columns [begin, end) of all tokens, x [tokens][width].
void convert_columns(const Context& context, const OperandBuffer& input, Type type, const float* x, int64_t width,
                     int64_t begin, int64_t end);

// Memory for what a pass makes, laid out when the model is made.
class Scratch {
 public:
  float* floats(int64_t channels) { return reinterpret_cast<float*>(memory_.take(kPassTokens * channels * 4)); }
  OperandBuffer input(int64_t columns) {
    return OperandBuffer(memory_.take(OperandBuffer::bytes(kPassTokens, columns)), kPassTokens, columns);
  }
  void* bytes(int64_t count) { return memory_.take(count); }

 private:
  Arena memory_{false};
};

}  // namespace rookery
