// Memory for weights: large pages, handed out from front to back in the order in which a step reads them.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace rookery {

class Arena {
 public:
  Arena() = default;
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // 64-byte aligned, zero, alive as long as the arena. Throws std::bad_alloc.
  uint8_t* take(int64_t bytes);
  int64_t bytes_taken() const { return taken_; }

 private:
  struct Region {
    uint8_t* start;
    int64_t bytes;
  };
  std::vector<Region> regions_;
  int64_t used_ = 0;  // of the last region
  int64_t taken_ = 0;
};

}  // namespace rookery
