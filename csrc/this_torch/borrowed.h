// What qdeq._C lends to this module: one copy of the kernels, one choice among them.
#pragma once

#include "common/core.h"

namespace qdeq {

const Core& core();

}  // namespace qdeq
