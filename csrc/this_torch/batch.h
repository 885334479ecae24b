// Many convolutions in one call: for a model of fifty small layers the calls cost more than the weights.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>
#include <vector>

#include "this_torch/packed_weight.h"

namespace qdeq {

// Fills each of `outs`; the results are whether each weight was read, and a copy of its bias. fbgemm's objects are read
// where they lie, any other engine's by its own unpack(), whose integers are given back before the next object is
// opened. Whatever could not be read is left to the caller, who finds out why. Does not need the GIL.
std::vector<std::tuple<bool, std::optional<at::Tensor>>> read_all(const std::vector<c10::intrusive_ptr<Packed>>& packed,
                                                                  const std::vector<at::Tensor>& outs,
                                                                  bool allow_bad_scales);

}  // namespace qdeq
