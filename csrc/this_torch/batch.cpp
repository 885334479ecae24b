#include "this_torch/batch.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/native/quantized/PackedParams.h>

#include <exception>

#include "this_torch/packed_read.h"

namespace qdeq {
namespace {

void read_unpacked(const at::Tensor& weight, const at::Tensor& out, bool allow_bad_scales) {
    using Signature = void(at::Tensor, bool, at::ScalarType, bool, at::Tensor);
    static const auto op =
        c10::Dispatcher::singleton().findSchemaOrThrow("qdeq::dequantize_quantized_out", "").typed<Signature>();
    const bool per_channel = weight.qscheme() != at::kPerTensorAffine && weight.qscheme() != at::kPerTensorSymmetric;
    op.call(weight, per_channel, out.scalar_type(), allow_bad_scales, out);
}

// Fills `out`, a contiguous tensor of the weight's shape; returns the bias. Throws where it cannot.
std::optional<at::Tensor> read(Packed& packed, const at::Tensor& out, bool allow_bad_scales) {
    auto* conv = dynamic_cast<ConvPackedParamsBase<2>*>(&packed);
    TORCH_CHECK(conv != nullptr && !conv->transpose(), "qdeq: not a plain 2-d convolution");
    const auto described = describe(packed);
    std::optional<at::Tensor> bias;
    const bool in_place =
        *obstacle_to(described, allow_bad_scales) == 0 && out_fits(*described, out, out.scalar_type());
    if (in_place && packed_bias(packed, &bias)) {  // unpack() would read the whole weight for the bias
        write_floats(*described, out);
        return bias;
    }
    const auto [weight, unpacked_bias] = conv->unpack();
    TORCH_CHECK(weight.is_quantized(), "qdeq: not a weight of integers");
    read_unpacked(weight, out, allow_bad_scales);
    return unpacked_bias;
}

}  // namespace

std::vector<std::tuple<bool, std::optional<at::Tensor>>> read_all(const std::vector<c10::intrusive_ptr<Packed>>& packed,
                                                                  const std::vector<at::Tensor>& outs,
                                                                  bool allow_bad_scales) {
    TORCH_CHECK(packed.size() == outs.size(), "qdeq: one output for each packed weight");
    std::vector<std::tuple<bool, std::optional<at::Tensor>>> results;
    for (size_t i = 0; i < packed.size(); ++i) {
        try {
            TORCH_CHECK(packed[i], "qdeq: not a packed weight");
            auto bias = read(*packed[i], outs[i], allow_bad_scales);
            if (bias) bias = bias->detach().clone();
            results.emplace_back(true, bias);
        } catch (const std::exception&) {
            results.emplace_back(false, std::nullopt);
        }
    }
    return results;
}

}  // namespace qdeq
