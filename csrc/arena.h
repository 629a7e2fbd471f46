// Memory that is handed out from front to back: for weights, in the order in which a step reads them.
//
// Memory that was never written takes no room. Large pages make reading weights faster; without them, what is handed
// out for many tokens takes room for those that came.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace rookery {

class Arena {
 public:
  explicit Arena(bool large_pages = true) : large_pages_(large_pages) {}
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // 256-byte aligned, zero, alive as long as the arena. Throws std::bad_alloc.
  uint8_t* take(int64_t bytes);
  int64_t bytes_taken() const { return taken_; }

 private:
  struct Region {
    uint8_t* start;
    int64_t bytes;
  };
  bool large_pages_;
  std::vector<Region> regions_;
  int64_t used_ = 0;  // of the last region
  int64_t taken_ = 0;
};

}  // namespace rookery
