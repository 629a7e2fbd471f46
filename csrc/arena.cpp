#include "arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <new>

namespace rookery {
namespace {

// Address space costs nothing until it is written to, so a region may be larger than what it will hold.
constexpr int64_t kRegion = int64_t{256} << 20;
constexpr int64_t kLargePage = int64_t{2} << 20;

}  // namespace

Arena::~Arena() {
  for (const Region& region : regions_) munmap(region.start, static_cast<size_t>(region.bytes));
}

uint8_t* Arena::take(int64_t bytes) {
  // A multiple of what the columns of a slab take, so that none of them begins in the middle of a pair of cache lines.
  bytes = (bytes + 255) / 256 * 256;
  if (regions_.empty() || used_ + bytes > regions_.back().bytes) {
    int64_t size = (std::max(bytes, kRegion) + kLargePage - 1) / kLargePage * kLargePage;
    void* start = mmap(nullptr, static_cast<size_t>(size), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
    // Fewer entries of the address cache for the same weights: reading them is a third faster.
    if (large_pages_) madvise(start, static_cast<size_t>(size), MADV_HUGEPAGE);
#endif
    regions_.push_back({static_cast<uint8_t*>(start), size});
    used_ = 0;
  }
  uint8_t* result = regions_.back().start + used_;
  used_ += bytes;
  taken_ += bytes;
  return result;
}

}  // namespace rookery
