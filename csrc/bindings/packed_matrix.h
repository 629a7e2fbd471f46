// Matrices as Python objects.
#pragma once

#include <memory>
#include <string>

#include "arena.h"
#include "matrix.h"

namespace rookery {

// A packed matrix and the arena that holds it.
struct PackedMatrix {
  Matrix matrix;
  std::shared_ptr<Arena> arena;
};

// The number itself. Throws std::invalid_argument where no team has so many.
int checked_threads(int threads);

// Throws std::invalid_argument where these are no sizes of a matrix.
void check_sizes(int64_t rows, int64_t columns);

// Throws std::invalid_argument for an unknown name.
Type type_of(const std::string& name);
Layout layout_of(const std::string& name);
SourceType source_type_of(const std::string& name);

// Bytes of a row of `columns` of a source. Throws std::invalid_argument where blocks do not divide it.
int64_t source_row_bytes(SourceType type, int64_t columns);

}  // namespace rookery
