// What lies in one of torch's packed weights, if fbgemm packed it: torch's and fbgemm's classes are known only here.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "packing/embedding.h"
#include "packing/emit_rows.h"

namespace qdeq {

using Packed = torch::CustomClassHolder;

// A weight that can be read in place. `format` is the packing's name, a literal; sizes are those of unpack()[0],
// strides those of unpack()[0].dequantize(). The pointers live as long as the packed object.
struct PackedWeight {
    const char* format = "";
    packing::Matrix matrix;                        // of a linear or convolution
    std::optional<packing::EmbeddingTable> table;  // or this
    std::vector<int64_t> sizes;
    std::vector<int64_t> strides;
    const std::vector<float>* scale = nullptr;
    const std::vector<int32_t>* zero_point = nullptr;
    bool per_channel = false;
    bool transposed = false;
    int64_t groups = 1;
    int64_t channels_per_group = 1;  // input channels; a row holds taps * channels_per_group values

    int64_t num_scales() const;
};

// Empty for every other class, engine and shape.
std::optional<PackedWeight> describe(Packed& packed);

// Where the weight's elements go in a result of its sizes and of these strides.
packing::Target target_of(const PackedWeight& weight, at::IntArrayRef strides);

// The live bias, not a copy: unpack() would read the whole weight for it. False where the object is not fbgemm's.
bool packed_bias(Packed& packed, std::optional<at::Tensor>* bias);

}  // namespace qdeq
