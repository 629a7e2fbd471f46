#include "model/weights.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace rookery {

Version version_of(const std::string& name) {
  static const std::map<std::string, Version> versions = {{"4", Version::v4},     {"5.0", Version::v5_0},
                                                          {"5.1", Version::v5_1}, {"5.2", Version::v5_2},
                                                          {"6", Version::v6},     {"7", Version::v7}};
  auto found = versions.find(name);
  if (found == versions.end()) throw std::invalid_argument("there is no version '" + name + "' of RWKV here");
  return found->second;
}

void Weights::add(const std::string& name, const Matrix& matrix, std::shared_ptr<const void> owner) {
  matrices_[name] = {matrix, std::move(owner)};
}

void Weights::add(const std::string& name, const float* values, int64_t size) {
  void* memory = memory_->take(size * 4);
  std::memcpy(memory, values, static_cast<size_t>(size) * 4);
  vectors_[name] = {static_cast<const float*>(memory), size};
}

const Matrix* Weights::matrix(const std::string& name, int64_t rows, int64_t columns) const {
  auto found = matrices_.find(name);
  if (found == matrices_.end()) throw std::invalid_argument("the matrix '" + name + "' is missing");
  const Matrix& matrix = found->second.matrix;
  if (matrix.rows != rows || matrix.columns != columns)
    throw std::invalid_argument("the matrix '" + name + "' is " + std::to_string(matrix.rows) + " x " +
                                std::to_string(matrix.columns) + ", not " + std::to_string(rows) + " x " +
                                std::to_string(columns));
  return &matrix;
}

const float* Weights::vector(const std::string& name, int64_t size) const {
  auto found = vectors_.find(name);
  if (found == vectors_.end()) throw std::invalid_argument("the vector '" + name + "' is missing");
  if (found->second.size != size)
    throw std::invalid_argument("the vector '" + name + "' has " + std::to_string(found->second.size) +
                                " values, not " + std::to_string(size));
  return found->second.values;
}

int64_t Weights::multiply_scratch_bytes() const {
  int64_t most = 0;
  for (const auto& [name, held] : matrices_) most = std::max(most, rookery::multiply_scratch_bytes(held.matrix));
  return most;
}

Norm Weights::norm(const std::string& name, int64_t size) const {
  return {vector(name + ".weight", size), vector(name + ".bias", size)};
}

}  // namespace rookery
