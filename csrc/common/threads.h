// How work is handed to torch's threads by code that does not know torch.
#pragma once

#include <cstdint>
#include <functional>

namespace qdeq {

// Calls body(begin, end) over 0..count, on several threads if that is safe and `grain` items are worth one.
using ParallelFor = void (*)(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body);

}  // namespace qdeq
