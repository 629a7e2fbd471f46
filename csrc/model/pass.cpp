#include "model/pass.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

namespace rookery {
namespace {

// Rows of an output that stay in cache until what follows them is done.
constexpr int64_t kRowsAtATime = 64;

void activate(const StepKernels& step, Activation activation, float* x, int64_t n) {
  switch (activation) {
    case Activation::none:
      break;
    case Activation::tanh:
      step.tanh(x, n);
      break;
    case Activation::sigmoid:
      step.sigmoid(x, n);
      break;
    case Activation::squared_relu:
      step.squared_relu(x, n);
      break;
  }
}

void run_rows(const Context& context, const Job& job, int64_t begin, int64_t end) {
  bool follows = job.activation != Activation::none || job.next != nullptr;
  int64_t at_a_time = follows && context.pass.tokens > 1 ? kRowsAtATime : end - begin, rows = job.matrix->rows;
  for (; begin < end; begin += at_a_time) {
    int64_t limit = std::min(begin + at_a_time, end);
    multiply_rows(context, *job.matrix, *job.input, job.output, begin, limit);
    if (!follows) continue;
    for (int64_t token = 0; token < context.pass.tokens; token++) {
      float* x = job.output + token * rows;
      activate(context.step, job.activation, x + begin, limit - begin);
      if (job.next != nullptr) job.next->convert_columns(job.next_type, x, begin, limit, context.pass.tokens, token);
    }
  }
}

}  // namespace

int64_t code_of(const Fault& fault) {
  return (fault.layer << 34) + (static_cast<int64_t>(fault.part) << 32) + fault.slot;
}

Fault fault_of(int64_t code) { return {static_cast<Part>(code >> 32 & 3), code >> 34, code & 0xffffffff}; }

void Context::report(Part part, int64_t layer, const Span& span) const {
  int64_t code = code_of({part, layer, span.slot}), first = pass.fault->load(std::memory_order_relaxed);
  while (code < first && !pass.fault->compare_exchange_weak(first, code, std::memory_order_relaxed)) {
  }
}

void shift(const Context& context, Part part, int64_t layer, const Norm& norm, const Shifted* inputs, int count) {
  const Pass& pass = context.pass;
  const StepKernels& step = context.step;
  int64_t width = context.config.width;
  float *current = context.own.rows[0], *before = context.own.rows[1], *mixed = context.own.rows[2];
  int64_t normalised = -1;  // the row that `current` holds
  Share mine = context.member.share(pass.tokens * count);
  for (int64_t item = mine.begin; item < mine.end;) {
    int64_t token = item / count, row = pass.row(token);
    const Span& span = pass.spans[pass.span_of_row[row]];
    const float* last = before;
    if (row == span.row)
      last = context.before(part, layer, span);
    else if (normalised == row - 1)
      std::swap(current, before), last = before;
    else
      step.layer_norm(pass.x + (row - 1) * width, norm.weight, norm.bias, width, before);
    step.layer_norm(pass.x + row * width, norm.weight, norm.bias, width, current);
    normalised = row;
    if (item % count == 0) std::memcpy(pass.normal + row * width, current, static_cast<size_t>(width) * 4);
    for (; item < mine.end && item / count == token; item++) {
      const Shifted& input = inputs[item % count];
      step.interpolate(current, last, input.weight, width, mixed);
      input.input->convert_columns(input.type, mixed, 0, width, pass.tokens, token);
    }
  }
}

void keep_shift(const Context& context, Part part, int64_t layer) {
  int64_t width = context.config.width;
  Share mine = context.member.share(context.pass.num_spans);
  for (int64_t i = mine.begin; i < mine.end; i++) {
    const Span& span = context.pass.spans[i];
    if (!context.step.finite(context.before(part, layer, span), width)) context.report(part, layer, span);
    std::memcpy(context.after(part, layer, span), context.pass.normal + (span.row + span.count - 1) * width,
                static_cast<size_t>(width) * 4);
  }
}

const float* previous(const Context& context, Part part, int64_t layer, int64_t row) {
  const Span& span = context.pass.spans[context.pass.span_of_row[row]];
  return row == span.row ? context.before(part, layer, span) : context.pass.normal + (row - 1) * context.config.width;
}

void multiply_rows(const Context& context, const Matrix& matrix, const OperandBuffer& input, float* output,
                   int64_t begin, int64_t end) {
  if (begin < end)
    multiply(matrix, input.view(context.pass.tokens), output, matrix.rows, begin, end, context.own.multiply);
}

void run_jobs(const Context& context, const Job* jobs, int count) {
  // Few threads take rows 64 at a time, which the kernels like best; with many, even shares matter more.
  int64_t total = 0, all_rows = 0;
  for (int i = 0; i < count; i++) {
    total += jobs[i].matrix->bytes();
    all_rows += jobs[i].matrix->rows;
  }
  const Member& member = context.member;
  int64_t unit = all_rows >= 64 * 8 * member.count ? 64 : 32;
  int64_t from = total * member.index / member.count, to = total * (member.index + 1) / member.count, start = 0;
  for (int i = 0; i < count; i++) {
    const Matrix& matrix = *jobs[i].matrix;
    int64_t own_unit = std::max(unit, row_unit(matrix)), bytes = matrix.bytes() * own_unit / matrix.padded_rows();
    auto row_at = [&](int64_t place) {
      if (place <= start) return int64_t{0};
      if (place >= start + matrix.bytes()) return matrix.rows;
      return std::min((place - start + bytes / 2) / bytes * own_unit, matrix.rows);
    };
    run_rows(context, jobs[i], row_at(from), row_at(to));
    start += matrix.bytes();
  }
}

void add_output(const Context& context, const Matrix& matrix, const OperandBuffer& input, const Matrix* gate,
                const OperandBuffer* gate_input, float* gate_output) {
  const Pass& pass = context.pass;
  int64_t width = context.config.width;
  Share mine = context.member.share(width, std::max<int64_t>(kBlock, row_unit(matrix)));
  if (gate != nullptr) multiply_rows(context, *gate, *gate_input, gate_output, mine.begin, mine.end);
  multiply_rows(context, matrix, input, pass.output, mine.begin, mine.end);
  for (int64_t token = 0; token < pass.tokens; token++) {
    int64_t at = token * width + mine.begin;
    float* x = pass.x + pass.row(token) * width + mine.begin;
    if (gate != nullptr)
      context.step.add_gated(x, gate_output + at, pass.output + at, mine.end - mine.begin);
    else
      context.step.add(x, pass.output + at, mine.end - mine.begin);
  }
}

Share share_heads(const Context& context) {
  int64_t size = std::max<int64_t>(context.config.head_size, 1);
  return context.member.share(context.config.attention_width, std::lcm(size, kBlock));
}

void convert_columns(const Context& context, const OperandBuffer& input, Type type, const float* x, int64_t width,
                     int64_t begin, int64_t end) {
  for (int64_t token = 0; token < context.pass.tokens; token++)
    input.convert_columns(type, x + token * width, begin, end, context.pass.tokens, token);
}

}  // namespace rookery
