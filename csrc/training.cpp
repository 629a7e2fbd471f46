#include "training.h"

#include <memory>
#include <new>
#include <vector>

#include "guest.h"
#include "kernels.h"

namespace rookery {
namespace {

constexpr int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Memory for each thread, cache lines apart.
class Scratch {
 public:
  Scratch(int threads, int64_t bytes)
      : each_(round_up(bytes, 64)), memory_(::operator new(static_cast<size_t>(threads * each_), kAlignment)) {}
  ~Scratch() { ::operator delete(memory_, kAlignment); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  void* of(int thread) const { return static_cast<char*>(memory_) + thread * each_; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  int64_t each_;
  void* memory_;
};

// Heads are shared out; where there are fewer than threads, each is cut into ranges of 16 value channels and more.
struct Cut {
  int64_t heads, parts, channels, values;

  Cut(const Sizes& size, int threads) : heads(size.batch * size.heads), values(size.values) {
    int64_t groups = (values + 15) / 16, wanted = (threads + heads - 1) / heads;
    channels = (groups + wanted - 1) / wanted * 16;
    parts = (values + channels - 1) / channels;
  }
  int64_t tasks() const { return heads * parts; }
  int64_t head(int64_t task) const { return task / parts; }
  int64_t part(int64_t task) const { return task % parts; }
  int64_t begin(int64_t task) const { return part(task) * channels; }
  int64_t end(int64_t task) const { return begin(task) + channels < values ? begin(task) + channels : values; }
};

// Gradients of inputs that have key channels are sums over value channels: of each range of these, a summand.
class Summands {
 public:
  Summands(const Sizes& size, int64_t parts) : size_(size), parts_(parts) {
    if (parts > 1) memory_ = std::make_unique_for_overwrite<float[]>(static_cast<size_t>(parts * kInputs * numbers()));
  }
  // The gradients with the summands of one part in the place of the sums.
  HeadsGradients of(int64_t part, HeadsGradients grad) {
    if (parts_ == 1) return grad;
    Sequence* of_keys[kInputs] = {&grad.dr, &grad.dlog_w, &grad.dk, &grad.da, &grad.db};
    for (int64_t i = 0; i < kInputs; i++)
      if (of_keys[i]->data != nullptr)
        *of_keys[i] = {place(part, i), size_.tokens * size_.heads * size_.keys, size_.heads * size_.keys, size_.keys,
                       Number::fp32};
    return grad;
  }
  void add_up(const HeadsGradients& grad, int threads) const {
    if (parts_ == 1) return;
    const Sequence* of_keys[kInputs] = {&grad.dr, &grad.dlog_w, &grad.dk, &grad.da, &grad.db};
    run_tasks(threads, size_.batch * size_.tokens, [&](int64_t row, int) {
      for (int64_t i = 0; i < kInputs; i++)
        for (int64_t h = 0; h < size_.heads && of_keys[i]->data != nullptr; h++) {
          int64_t first = (row * size_.heads + h) * size_.keys;
          kernels().training.add_rows(place(0, i) + first, kInputs * numbers(), parts_, size_.keys, *of_keys[i],
                                      of_keys[i]->at(row / size_.tokens, row % size_.tokens, h));
        }
    });
  }

 private:
  static constexpr int64_t kInputs = 5;
  int64_t numbers() const { return size_.batch * size_.tokens * size_.heads * size_.keys; }
  float* place(int64_t part, int64_t input) const { return memory_.get() + (part * kInputs + input) * numbers(); }

  Sizes size_;
  int64_t parts_;
  std::unique_ptr<float[]> memory_;
};

}  // namespace

void heads_forward(Heads which, const HeadsInput& x, const HeadsKept& kept, const HeadsOutput& out, int threads) {
  Cut cut(x.size, threads);
  const TrainingKernels& training = kernels().training;
  Scratch scratch(threads, training.forward_bytes(x.size));
  run_tasks(threads, cut.tasks(), [&](int64_t task, int thread) {
    int64_t head = cut.head(task);
    training.forward[static_cast<int>(which)](x, kept, out, head / x.size.heads, head % x.size.heads, cut.begin(task),
                                              cut.end(task), scratch.of(thread));
  });
}

void heads_backward(Heads which, const HeadsInput& x, const HeadsKept& kept, const HeadsGradients& grad, int threads) {
  Cut cut(x.size, threads);
  const TrainingKernels& training = kernels().training;
  Scratch scratch(threads, training.backward_bytes(x.size));
  Summands summands(x.size, cut.parts);
  // The bonus's gradient is short: [B, H, K] for each part.
  int64_t bonuses = cut.heads * x.size.keys;
  std::vector<float> du(grad.du != nullptr ? static_cast<size_t>(cut.parts * bonuses) : 0);
  run_tasks(threads, cut.tasks(), [&](int64_t task, int thread) {
    int64_t head = cut.head(task);
    HeadsGradients part = summands.of(cut.part(task), grad);
    part.du = du.data() + cut.part(task) * bonuses;
    training.backward[static_cast<int>(which)](x, kept, part, head / x.size.heads, head % x.size.heads, cut.begin(task),
                                               cut.end(task), scratch.of(thread));
  });
  summands.add_up(grad, threads);
  for (int64_t i = 0; grad.du != nullptr && i < bonuses; i++) {
    grad.du[i] = 0;
    for (int64_t part = 0; part < cut.parts; part++) grad.du[i] += du[static_cast<size_t>(part * bonuses + i)];
  }
}

void channels_forward(const ChannelsInput& x, const ChannelsOutput& out, int threads) {
  int64_t groups = (x.channels + 15) / 16;
  run_tasks(threads, x.batch * groups,
            [&](int64_t task, int) { kernels().training.forward_channels(x, out, task / groups, task % groups * 16); });
}

void channels_backward(const ChannelsInput& x, const ChannelsGradients& grad, int threads) {
  int64_t groups = (x.channels + 15) / 16;
  run_tasks(threads, x.batch * groups, [&](int64_t task, int) {
    kernels().training.backward_channels(x, grad, task / groups, task % groups * 16);
  });
}

}  // namespace rookery
