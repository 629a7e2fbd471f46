// The weights of a model by name, and its shape.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "arena.h"
#include "matrix.h"

namespace rookery {

enum class Version { v4, v5_0, v5_1, v5_2, v6, v7 };

// As rookery.config has it; ranks that a version has not are 0.
struct Config {
  Version version;
  int64_t vocab_size, width, num_layers, attention_width, ffn_width, head_size;
  int64_t mix_rank, decay_rank, iclr_rank, value_rank, gate_rank;

  int64_t num_heads() const { return head_size == 0 ? 0 : attention_width / head_size; }
  // Floats of the recurrence's state, of one layer and stream.
  int64_t wkv_size() const { return version == Version::v4 ? 3 * attention_width : attention_width * head_size; }
};

// Throws std::invalid_argument where there is no such version.
Version version_of(const std::string& name);

struct Norm {
  const float *weight, *bias;
};

class Weights {
 public:
  // The owner keeps the matrix's memory.
  void add(const std::string& name, const Matrix& matrix, std::shared_ptr<const void> owner);
  // Copies the values.
  void add(const std::string& name, const float* values, int64_t size);

  bool has(const std::string& name) const { return matrices_.contains(name) || vectors_.contains(name); }
  // These throw std::invalid_argument where there is none of this name and shape.
  const Matrix* matrix(const std::string& name, int64_t rows, int64_t columns) const;
  const float* vector(const std::string& name, int64_t size) const;
  Norm norm(const std::string& name, int64_t size) const;
  // What a thread needs for itself to multiply any of the matrices.
  int64_t multiply_scratch_bytes() const;

 private:
  struct Held {
    Matrix matrix;
    std::shared_ptr<const void> owner;
  };
  struct Vector {
    const float* values;
    int64_t size;
  };
  std::map<std::string, Held> matrices_;
  std::map<std::string, Vector> vectors_;
  std::unique_ptr<Arena> memory_ = std::make_unique<Arena>(false);
};

}  // namespace rookery
