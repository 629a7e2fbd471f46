#include "quantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "numbers.h"

namespace rookery {

void quantize_q8_0(const float* x, int64_t n, uint8_t* blocks) {
  for (int64_t start = 0; start < n; start += 32, blocks += kQ8Bytes) {
    float largest = 0;
    for (int i = 0; i < 32; i++) largest = std::max(largest, std::fabs(x[start + i]));
    uint16_t scale = to_f16(largest / 127.0f);
    std::memcpy(blocks, &scale, 2);
    float exact = from_f16(scale), inverse = exact > 0 ? 1.0f / exact : 0.0f;
    for (int i = 0; i < 32; i++) {
      float q = std::nearbyintf(x[start + i] * inverse);
      blocks[2 + i] = static_cast<uint8_t>(static_cast<int8_t>(std::clamp(q, -127.0f, 127.0f)));
    }
  }
}

void quantize_q4_0(const float* x, int64_t n, uint8_t* blocks) {
  for (int64_t start = 0; start < n; start += 32, blocks += kQ4Bytes) {
    float extreme = 0;
    for (int i = 0; i < 32; i++)
      if (std::fabs(x[start + i]) > std::fabs(extreme)) extreme = x[start + i];
    uint16_t scale = to_f16(extreme / -8.0f);
    std::memcpy(blocks, &scale, 2);
    float exact = from_f16(scale), inverse = exact != 0 ? 1.0f / exact : 0.0f;
    for (int i = 0; i < 16; i++) {
      float low = std::nearbyintf(x[start + i] * inverse) + 8, high = std::nearbyintf(x[start + 16 + i] * inverse) + 8;
      blocks[2 + i] = static_cast<uint8_t>(static_cast<int>(std::clamp(low, 0.0f, 15.0f)) |
                                           static_cast<int>(std::clamp(high, 0.0f, 15.0f)) << 4);
    }
  }
}

}  // namespace rookery
