// Reading a described packed weight into a tensor.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "this_torch/packed_weight.h"

namespace qdeq {

// What stands in the way of a result, in words; empty: nothing does.
constexpr const char* kNothing = "";
constexpr const char* kNotInPlace = "not in place";
constexpr const char* kDirectConv = "direct";
constexpr const char* kBadScale = "bad scale";
constexpr const char* kBadOut = "bad out";

const char* obstacle_to(const std::optional<PackedWeight>& weight, bool allow_bad_scales);

// Whether `out` can take the weight in `dtype`; kBadOut is the word for it.
bool out_fits(const PackedWeight& weight, const at::Tensor& out, at::ScalarType dtype);

// `out` fits.
void write_floats(const PackedWeight& weight, const at::Tensor& out);

}  // namespace qdeq
