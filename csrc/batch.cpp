// Many convolutions in one call: for a model of fifty small layers the calls cost more than the weights.
//
// Each object is read by the operators that read one: fbgemm's where it lies, any other engine's by its own unpack(),
// whose integers are given back before the next object is opened.
#include <ATen/Functions.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/native/quantized/cpu/fbgemm_utils.h>
#include <torch/library.h>

#include <optional>
#include <string>
#include <string_view>
#include <tuple>

namespace qdeq {
namespace {

using Conv = ConvPackedParamsBase<2>;
using Pointer = c10::intrusive_ptr<Conv>;
using OptionalTensors = c10::List<std::optional<at::Tensor>>;

std::string read_in_place(const Pointer& packed, const at::Tensor& out, std::string_view kernel,
                          bool allow_bad_scales) {
    using Signature = std::string(const Pointer&, const at::Tensor&, at::ScalarType, std::string_view, bool);
    static const auto op =
        c10::Dispatcher::singleton().findSchemaOrThrow("qdeq::packed_dequantize_out", "conv2d").typed<Signature>();
    return op.call(packed, out, out.scalar_type(), kernel, allow_bad_scales);
}

void read_unpacked(const at::Tensor& weight, const at::Tensor& out, bool allow_bad_scales) {
    using Signature = void(at::Tensor, bool, at::ScalarType, bool, at::Tensor);
    static const auto op =
        c10::Dispatcher::singleton().findSchemaOrThrow("qdeq::dequantize_quantized_out", "").typed<Signature>();
    const bool per_channel = weight.qscheme() != at::kPerTensorAffine && weight.qscheme() != at::kPerTensorSymmetric;
    op.call(weight, per_channel, out.scalar_type(), allow_bad_scales, out);
}

// The live bias; unpack() of fbgemm's objects would read the whole weight for it.
std::optional<at::Tensor> bias_in_place(PackedConvWeight<2>& packed) { return packed.bias; }

// Fills `out`, a contiguous tensor of the weight's shape; returns the bias. Throws where it cannot.
std::optional<at::Tensor> read(const Pointer& packed, const at::Tensor& out, std::string_view kernel,
                               bool allow_bad_scales) {
    TORCH_CHECK(!packed->transpose(), "qdeq: transposed convolutions are read one by one");
    if (auto* fbgemm = dynamic_cast<PackedConvWeight<2>*>(packed.get())) {
        const std::string status = read_in_place(packed, out, kernel, allow_bad_scales);
        if (status.empty()) return bias_in_place(*fbgemm);
    }
    const auto [weight, bias] = packed->unpack();
    TORCH_CHECK(weight.is_quantized(), "qdeq: not a weight of integers");
    read_unpacked(weight, out, allow_bad_scales);
    return bias;
}

// Fills each of `outs`; the results are copies of the biases, and whether each weight was read. Whatever could not be
// read is left to the caller, who finds out why.
std::tuple<OptionalTensors, c10::List<bool>> read_all(const c10::List<Pointer>& packed, const at::TensorList& outs,
                                                      std::string_view kernel, bool allow_bad_scales) {
    TORCH_CHECK(packed.size() == outs.size(), "qdeq: one output for each packed weight");
    OptionalTensors biases;
    c10::List<bool> done;
    for (size_t i = 0; i < packed.size(); ++i) {
        std::optional<at::Tensor> bias;
        bool good = true;
        try {
            bias = read(packed.get(i), outs[i], kernel, allow_bad_scales);
            if (bias) bias = bias->detach().clone();
        } catch (const std::exception&) {
            good = false;
            bias.reset();
        }
        biases.push_back(bias);
        done.push_back(good);
    }
    return {biases, done};
}

}  // namespace
}  // namespace qdeq

TORCH_LIBRARY_FRAGMENT(qdeq, m) {
    m.def(
        "packed_read_all.conv2d(__torch__.torch.classes.quantized.Conv2dPackedParamsBase[] packed, Tensor(a!)[] outs, "
        "str kernel, bool allow_bad_scales) -> (Tensor?[], bool[])",
        &qdeq::read_all);
}
