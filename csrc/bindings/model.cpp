// Models.
#include "model/model.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <stdexcept>
#include <tuple>

#include "bindings/bindings.h"
#include "bindings/packed_matrix.h"

namespace rookery {

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Raw = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Vector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Integers = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Logits = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Numbers = nb::ndarray<double, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Flags = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using StatePart = nb::ndarray<float, nb::c_contig, nb::device::cpu>;
using ReadOnlyPart = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;

int64_t size_of(const nb::dict& sizes, const char* name) { return nb::cast<int64_t>(sizes[name]); }

void make(Model* self, const std::string& version, nb::dict sizes, nb::dict vectors, nb::dict matrices, Raw embedding,
          const std::string& embedding_type, int threads) {
  checked_threads(threads);
  Config config = {
      .version = version_of(version),
      .vocab_size = size_of(sizes, "vocab_size"),
      .width = size_of(sizes, "width"),
      .num_layers = size_of(sizes, "num_layers"),
      .attention_width = size_of(sizes, "attention_width"),
      .ffn_width = size_of(sizes, "ffn_width"),
      .head_size = size_of(sizes, "head_size"),
      .mix_rank = size_of(sizes, "mix_rank"),
      .decay_rank = size_of(sizes, "decay_rank"),
      .iclr_rank = size_of(sizes, "iclr_rank"),
      .value_rank = size_of(sizes, "value_rank"),
      .gate_rank = size_of(sizes, "gate_rank"),
  };
  for (auto [name, size] : sizes)
    if (nb::cast<int64_t>(size) < 0 || nb::cast<int64_t>(size) > INT32_MAX)
      throw std::invalid_argument(nb::cast<std::string>(name) + " is out of range");
  if (config.vocab_size == 0 || config.width == 0 || config.num_layers == 0 || config.attention_width == 0 ||
      config.ffn_width == 0)
    throw std::invalid_argument("a model's sizes must be positive");
  bool heads = config.version != Version::v4;
  if (heads && (config.head_size == 0 || config.attention_width % config.head_size != 0))
    throw std::invalid_argument("attention_width must be a multiple of head_size");
  Source source;
  source.type = source_type_of(embedding_type);
  source.data = embedding.data();
  source.row_bytes = source_row_bytes(source.type, config.width);
  if (static_cast<int64_t>(embedding.size()) != source.row_bytes * config.vocab_size)
    throw std::invalid_argument("the embedding has " + std::to_string(embedding.size()) + " bytes, not " +
                                std::to_string(source.row_bytes * config.vocab_size));
  Weights weights;
  for (auto [name, value] : vectors) {
    Vector vector = nb::cast<Vector>(value);
    weights.add(nb::cast<std::string>(name), vector.data(), static_cast<int64_t>(vector.size()));
  }
  for (auto [name, value] : matrices) {
    const PackedMatrix& packed = nb::cast<const PackedMatrix&>(value);
    weights.add(nb::cast<std::string>(name), packed.matrix, packed.arena);
  }
  new (self) Model(config, std::move(weights), source, threads);
}

void check_token(const Config& config, int64_t token) {
  if (token < 0 || token >= config.vocab_size)
    throw std::invalid_argument("token " + std::to_string(token) + " is outside of the vocabulary of " +
                                std::to_string(config.vocab_size));
}

// The number of slots of a state, all of whose parts must have the sizes of the model.
int64_t slots_of(const Config& config, const ReadOnlyPart& time_shift, const ReadOnlyPart& channel_shift,
                 const ReadOnlyPart& wkv) {
  if (time_shift.ndim() != 3) throw std::invalid_argument("time_shift must have three axes");
  int64_t slots = static_cast<int64_t>(time_shift.shape(1)), columns = config.num_layers * slots;
  if (static_cast<int64_t>(time_shift.size()) != columns * config.width ||
      static_cast<int64_t>(channel_shift.size()) != columns * config.width ||
      static_cast<int64_t>(wkv.size()) != columns * config.wkv_size())
    throw std::invalid_argument("the state is not of this model");
  return slots;
}

// What a state holds that is not finite: the name of the part, the layer and the slot.
using Named = std::optional<std::tuple<std::string, int64_t, int64_t>>;

// A call without what is to come out of it, checked.
Call checked_call(const Model& self, const Integers& tokens, const Integers& counts, const Integers& slots,
                  const ReadOnlyPart& time_shift, const ReadOnlyPart& channel_shift, const ReadOnlyPart& wkv,
                  const StatePart& time_shift_after, const StatePart& channel_shift_after, const StatePart& wkv_after) {
  const Config& config = self.config();
  Call call;
  call.tokens = tokens.data();
  call.counts = counts.data();
  call.slots = slots.data();
  call.streams = static_cast<int64_t>(counts.size());
  call.all_logits = false;
  call.logits = nullptr;
  int64_t all_slots = slots_of(config, time_shift, channel_shift, wkv);
  if (all_slots !=
      slots_of(config, ReadOnlyPart(time_shift_after), ReadOnlyPart(channel_shift_after), ReadOnlyPart(wkv_after)))
    throw std::invalid_argument("the states have different numbers of slots");
  // What comes before is only read; the type has no pointers to const for it.
  call.before = {const_cast<float*>(time_shift.data()), const_cast<float*>(channel_shift.data()),
                 const_cast<float*>(wkv.data()), all_slots};
  call.after = {time_shift_after.data(), channel_shift_after.data(), wkv_after.data(), all_slots};

  int64_t total = static_cast<int64_t>(tokens.size()), expected = 0;
  if (slots.size() != counts.size()) throw std::invalid_argument("each stream needs a slot and a count");
  for (int64_t i = 0; i < call.streams; i++) {
    if (call.counts[i] < 1 || call.counts[i] > total) throw std::invalid_argument("a stream without tokens");
    expected += call.counts[i];
    if (call.slots[i] < 0 || call.slots[i] >= all_slots)
      throw std::invalid_argument("slot " + std::to_string(call.slots[i]) + " is not one of " +
                                  std::to_string(all_slots));
  }
  if (expected != total) throw std::invalid_argument("the counts do not add up to the tokens");
  for (int64_t i = 0; i < total; i++) check_token(config, call.tokens[i]);
  return call;
}

Named run(Model& self, const Call& call) {
  std::optional<Fault> fault;
  {
    nb::gil_scoped_release release;
    fault = self.step(call);
  }
  if (!fault) return std::nullopt;
  const char* parts[] = {"time_shift", "wkv", "channel_shift"};
  return std::tuple(std::string(parts[static_cast<int>(fault->part)]), fault->layer, fault->slot);
}

Named step(Model& self, Integers tokens, Integers counts, Integers slots, ReadOnlyPart time_shift,
           ReadOnlyPart channel_shift, ReadOnlyPart wkv, StatePart time_shift_after, StatePart channel_shift_after,
           StatePart wkv_after, Logits logits, bool all_logits) {
  Call call = checked_call(self, tokens, counts, slots, time_shift, channel_shift, wkv, time_shift_after,
                           channel_shift_after, wkv_after);
  call.all_logits = all_logits;
  call.logits = logits.data();
  if (logits.shape(0) != (all_logits ? tokens.size() : counts.size()) ||
      static_cast<int64_t>(logits.shape(1)) != self.config().vocab_size)
    throw std::invalid_argument("the logits have another shape");
  return run(self, call);
}

Named score(Model& self, Integers tokens, Integers counts, Integers slots, StatePart time_shift,
            StatePart channel_shift, StatePart wkv, Integers rows, Integers targets, Numbers log_probabilities,
            Flags likeliest, Logits logits) {
  Call call = checked_call(self, tokens, counts, slots, ReadOnlyPart(time_shift), ReadOnlyPart(channel_shift),
                           ReadOnlyPart(wkv), time_shift, channel_shift, wkv);
  Targets wanted = {rows.data(),      targets.data(), static_cast<int64_t>(rows.size()), log_probabilities.data(),
                    likeliest.data(), logits.data()};
  if (targets.size() != rows.size() || log_probabilities.size() != rows.size() || likeliest.size() != rows.size())
    throw std::invalid_argument("each target needs a row, and room for what is found");
  for (int64_t i = 0; i < wanted.count; i++) {
    if (wanted.rows[i] < (i == 0 ? 0 : wanted.rows[i - 1]) || wanted.rows[i] >= static_cast<int64_t>(tokens.size()))
      throw std::invalid_argument("the rows of targets must ascend, and be places among the tokens");
    check_token(self.config(), wanted.tokens[i]);
  }
  if (static_cast<int64_t>(logits.shape(0)) < std::min(wanted.count, kPromptTokens) ||
      static_cast<int64_t>(logits.shape(1)) != self.config().vocab_size)
    throw std::invalid_argument("the room for logits has another shape");
  call.targets = &wanted;
  return run(self, call);
}

}  // namespace

void bind_model(nb::module_& m) {
  nb::class_<Model>(m, "Model", "A model whose weights are packed; rookery.native.NativeModel is its face.")
      .def("__init__", &make, "version"_a, "sizes"_a, "vectors"_a, "matrices"_a, "embedding"_a, "embedding_type"_a,
           "threads"_a, nb::keep_alive<1, 6>())
      .def_prop_ro("threads", &Model::threads)
      .def("step", &step, "tokens"_a, "counts"_a, "slots"_a, "time_shift"_a, "channel_shift"_a, "wkv"_a,
           "time_shift_after"_a.noconvert(), "channel_shift_after"_a.noconvert(), "wkv_after"_a.noconvert(),
           "logits"_a.noconvert(), "all_logits"_a,
           "Run tokens of several streams, and write states and logits. Returns None, or where a state holds NaN or "
           "infinity: the name of the part, the layer and the slot.")
      .def("score", &score, "tokens"_a, "counts"_a, "slots"_a, "time_shift"_a.noconvert(),
           "channel_shift"_a.noconvert(), "wkv"_a.noconvert(), "rows"_a, "targets"_a, "log_probabilities"_a.noconvert(),
           "likeliest"_a.noconvert(), "logits"_a.noconvert(),
           "Run tokens of several streams in place, and write the log-probabilities of targets after some of them. "
           "Returns what `step` does.");
}

}  // namespace rookery
