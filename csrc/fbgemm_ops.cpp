// Module qdeq._fbgemm: the operators that read fbgemm's packed weights where they lie. Only for the torch that it was
// built with: it reads fbgemm's C++ objects by their layout. Recognition, sizes, allocation and threads are here; the
// layouts and the arithmetic are in packed/.
#include <ATen/Functions.h>
#include <ATen/core/Tensor.h>
#include <ATen/native/quantized/cpu/fbgemm_utils.h>
#include <c10/core/MemoryFormat.h>
#include <pybind11/pybind11.h>
#include <torch/csrc/stable/c/shim.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/kernels.h"
#include "memory.h"
#include "packed/emit_rows.h"

namespace qdeq {
namespace {

namespace packing = qdeq::packed;

// ---- what lies in a packed object -------------------------------------------------------------------------------

// A weight that can be read in place. `format` is the packing's name; sizes are those of unpack()[0], strides those of
// unpack()[0].dequantize(). The pointers live as long as the packed object.
struct PackedWeight {
    std::string format;
    packing::Matrix matrix;
    std::vector<int64_t> sizes;
    std::vector<int64_t> strides;
    const std::vector<float>* scale = nullptr;
    const std::vector<int32_t>* zero_point = nullptr;
    bool per_channel = false;
    bool transposed = false;
    int64_t groups = 1;
    int64_t channels_per_group = 1;  // input channels; a row holds taps * channels_per_group values

    int64_t num_scales() const {
        const auto tiling = packing::tiling_of(matrix, false);
        return per_channel ? tiling.groups * tiling.rows_per_group : 1;
    }
};

c10::intrusive_ptr<torch::CustomClassHolder> holder_of(const c10::IValue& packed) {
    if (!packed.isObject()) return {};
    const auto object = packed.toObject();
    if (object->slots().size() != 1 || !object->getSlot(0).isCapsule()) return {};
    return object->getSlot(0).toCapsule();
}

// fbgemm interleaves four rows of the matrix it packs (our columns) for 32-bit accumulation, which is what torch uses;
// addr(0, 1) is that number. Anything else is left to unpack().
std::optional<packing::Matrix> blocked(fbgemm::PackBMatrix<int8_t>& b) {
    const packing::Blocked m{b.getBuf(),       b.numGroups(),   b.numCols(), b.numRows() / b.numGroups(),
                             b.blockRowSize(), b.blockColSize()};
    if (m.block_rows < 2 || b.addr(0, 1) != 4 || m.block_cols % 4 != 0) return std::nullopt;
    return m;
}

bool describe_qparams(PackedWeight& weight, const std::vector<float>& scale, const std::vector<int32_t>& zero_point,
                      c10::QScheme scheme) {
    weight.scale = &scale;
    weight.zero_point = &zero_point;
    weight.per_channel = scheme == c10::kPerChannelAffine;
    const auto count = static_cast<size_t>(weight.num_scales());
    if (scheme != c10::kPerChannelAffine && scheme != c10::kPerTensorAffine) return false;
    if (scale.size() < count || zero_point.size() < count) return false;
    for (size_t i = 0; i < count; ++i) {
        if (zero_point[i] < -128 || zero_point[i] > 127) return false;  // unpack() says what is wrong
    }
    return true;
}

std::optional<PackedWeight> describe_linear(PackedLinearWeight& packed) {
    auto matrix = blocked(*packed.w);
    if (!matrix || packed.w->numGroups() != 1) return std::nullopt;
    PackedWeight weight;
    weight.format = "linear";
    weight.matrix = *matrix;
    weight.sizes = {packed.w->numCols(), packed.w->numRows()};
    weight.strides = {packed.w->numRows(), 1};
    weight.channels_per_group = packed.w->numRows();
    if (!describe_qparams(weight, packed.w_scale, packed.w_zp, packed.q_scheme)) return std::nullopt;
    return weight;
}

std::vector<int64_t> dense_strides(const std::vector<int64_t>& sizes, bool channels_last) {
    std::vector<int64_t> strides(sizes.size());
    int64_t step = 1;
    const auto set = [&](size_t dim) {
        strides[dim] = step;
        step *= std::max<int64_t>(sizes[dim], 1);
    };
    if (channels_last) set(1);
    for (size_t dim = sizes.size(); dim-- > 0;) {
        if (!channels_last || dim != 1) set(dim);
    }
    return strides;
}

// unpack() makes a channels_last tensor; a transposed convolution's is then permuted, in_channels first. dequantize()
// keeps channels_last where the strides say so without ambiguity, and is contiguous otherwise.
std::vector<int64_t> conv_strides(const PackedWeight& weight) {
    if (weight.transposed) return dense_strides(weight.sizes, false);
    const auto strides = dense_strides(weight.sizes, true);
    const bool channels_last = weight.sizes.size() == 4 ? c10::is_channels_last_strides_2d(weight.sizes, strides)
                                                        : c10::is_channels_last_strides_3d(weight.sizes, strides);
    return channels_last ? strides : dense_strides(weight.sizes, false);
}

template <int kSpatialDim>
std::optional<packing::Matrix> conv_matrix(fbgemm::PackWeightsForConv<kSpatialDim>& w, int64_t taps,
                                           std::string& format) {
    const int64_t groups = w.groups();
    const int64_t channels = w.inputChannels() / groups;
    if (auto im2col = w.getPackedWForIm2col()) return format = "im2col", blocked(*im2col);
    if (auto pointwise = w.getPackedWForPointwise()) return format = "pointwise", blocked(*pointwise);
    if (auto depthwise = w.getPackedWForDepthwise()) {
        if (channels != 1 || depthwise->GetKernelProduct() != taps) return std::nullopt;
        format = "depthwise";
        return packing::Depthwise{depthwise->PackedMat(), w.outputChannels(), taps};
    }
    if (auto groupwise = w.getPackedWForGroupwise()) {
        using GConv = fbgemm::PackWeightMatrixForGConv<int8_t, int32_t, kSpatialDim>;
        fbgemm::conv_param_t<kSpatialDim> shape(1, w.inputChannels(), w.outputChannels(), {}, w.groups(),
                                                w.kernelDims(), fbgemm::array_of_ones<kSpatialDim>(), {});
        format = "groupwise";
        return packing::Groupwise{groupwise->getBuf(),
                                  groups,
                                  w.outputChannels() / groups,
                                  channels,
                                  taps,
                                  GConv::numOfGroupsTogether(shape)};
    }
    if (auto direct = w.getPackedWForDirectconv()) {
        format = "direct";
        return packing::Direct{direct->PackedMat(), w.outputChannels(), channels, taps};
    }
    return std::nullopt;
}

template <int kSpatialDim>
std::optional<PackedWeight> describe_conv(PackedConvWeight<kSpatialDim>& packed) {
    auto& w = *packed.w;
    PackedWeight weight;
    weight.groups = w.groups();
    weight.channels_per_group = w.inputChannels() / weight.groups;
    weight.transposed = packed.transpose();
    int64_t taps = 1;
    for (const int64_t size : packed.kernel) taps *= size;
    auto matrix = conv_matrix<kSpatialDim>(w, taps, weight.format);
    if (!matrix) return std::nullopt;
    weight.matrix = *matrix;
    if (packing::tiling_of(weight.matrix, false).cols != taps * weight.channels_per_group) return std::nullopt;
    weight.sizes = weight.transposed ? std::vector<int64_t>{w.inputChannels(), w.outputChannels() / weight.groups}
                                     : std::vector<int64_t>{w.outputChannels(), weight.channels_per_group};
    weight.sizes.insert(weight.sizes.end(), packed.kernel.begin(), packed.kernel.end());
    weight.strides = conv_strides(weight);
    if (!describe_qparams(weight, packed.w_scale, packed.w_zp, packed.q_scheme)) return std::nullopt;
    return weight;
}

// Empty for every other class, engine and shape.
std::optional<PackedWeight> describe(const c10::IValue& packed) {
    const auto holder = holder_of(packed);
    if (auto* linear = dynamic_cast<PackedLinearWeight*>(holder.get())) return describe_linear(*linear);
    if (auto* conv = dynamic_cast<PackedConvWeight<2>*>(holder.get())) return describe_conv<2>(*conv);
    if (auto* conv = dynamic_cast<PackedConvWeight<3>*>(holder.get())) return describe_conv<3>(*conv);
    return std::nullopt;
}

// ---- threads ----------------------------------------------------------------------------------------------------

void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
    if (count <= grain || !threads_are_safe()) {
        if (count > 0) body(0, count);
        return;
    }
    const auto call = [](int64_t begin, int64_t end, void* context) {
        (*static_cast<const std::function<void(int64_t, int64_t)>*>(context))(begin, end);
    };
    TORCH_CHECK(torch_parallel_for(0, count, grain, call, const_cast<void*>(static_cast<const void*>(&body))) == 0,
                "qdeq: the parallel loop failed");
}

// ---- the operators ----------------------------------------------------------------------------------------------

// Strides of the taps (depth, height, width), if they are those of one dense run of `step` elements a tap.
bool taps_are_dense(const PackedWeight& weight, at::IntArrayRef strides, int64_t step) {
    for (size_t dim = weight.sizes.size(); dim-- > 2;) {
        if (weight.sizes[dim] > 1 && strides[dim] != step) return false;
        step *= weight.sizes[dim];
    }
    return true;
}

std::vector<int64_t> places_of(const PackedWeight& weight, at::IntArrayRef strides, int64_t channel_stride) {
    std::vector<int64_t> places{0};
    for (size_t dim = 2; dim < weight.sizes.size(); ++dim) {
        std::vector<int64_t> inner;
        for (const int64_t place : places) {
            for (int64_t i = 0; i < weight.sizes[dim]; ++i) inner.push_back(place + i * strides[dim]);
        }
        places = std::move(inner);
    }
    std::vector<int64_t> with_channels;
    with_channels.reserve(places.size() * static_cast<size_t>(weight.channels_per_group));
    for (const int64_t place : places) {
        for (int64_t c = 0; c < weight.channels_per_group; ++c) with_channels.push_back(place + c * channel_stride);
    }
    return with_channels;
}

packing::Target target_of(const PackedWeight& weight, at::IntArrayRef strides) {
    const int64_t channels = weight.channels_per_group;
    const int64_t channel_stride = weight.transposed ? strides[0] : strides[1];
    const int64_t group_size = weight.transposed ? channels : weight.sizes[0] / weight.groups;
    int64_t taps = 1;
    for (size_t dim = 2; dim < weight.sizes.size(); ++dim) taps *= weight.sizes[dim];
    packing::Target target{};
    target.group_stride = group_size * strides[0];
    target.row_stride = weight.transposed ? strides[1] : strides[0];
    target.taps = taps;
    target.channels = channels;
    if ((channel_stride == 1 || channels == 1) && taps_are_dense(weight, strides, channels)) {
        target.columns = packing::Target::kDense;
    } else if ((channel_stride == taps || channels == 1) && taps_are_dense(weight, strides, 1)) {
        target.columns = packing::Target::kTransposed;
    } else {
        target.columns = packing::Target::kScattered;
        target.places = places_of(weight, strides, channel_stride);
    }
    return target;
}

const KernelSet& kernels_named(std::string_view name) {
    for (int i = 0; i < num_kernel_sets(); ++i) {
        if (kernel_set(i).name == name) return kernel_set(i);
    }
    TORCH_CHECK(false, "qdeq: no kernels named ", name, " here");
}

// Sufficient and cheap: in order of stride, each dimension steps over everything inside it.
bool may_overlap_itself(const at::Tensor& out) {
    std::vector<std::pair<int64_t, int64_t>> dims;
    for (int64_t dim = 0; dim < out.dim(); ++dim) {
        if (out.size(dim) > 1) dims.emplace_back(out.stride(dim), out.size(dim));
    }
    std::sort(dims.begin(), dims.end());
    int64_t reach = 0;
    for (const auto& [stride, size] : dims) {
        if (stride <= reach) return true;
        reach += stride * (size - 1);
    }
    return false;
}

bool out_fits(const PackedWeight& weight, const at::Tensor& out, at::ScalarType dtype) {
    return out.layout() == at::kStrided && out.device().is_cpu() && !out.is_quantized() && out.scalar_type() == dtype &&
           out.sizes() == at::IntArrayRef(weight.sizes) && !out.requires_grad() && !may_overlap_itself(out);
}

using Layout = std::tuple<std::string, std::vector<int64_t>, std::vector<int64_t>, bool>;

Layout packed_layout(const c10::IValue& packed) {
    auto weight = describe(packed);
    if (!weight) return {"", {}, {}, false};
    return {weight->format, weight->sizes, weight->strides, weight->per_channel};
}

// float64 scales and int64 zero points, 0-d or 1-d; copies.
std::tuple<at::Tensor, at::Tensor> packed_qparams(const c10::IValue& packed) {
    const auto weight = describe(packed);
    TORCH_CHECK(weight, "qdeq: this packed weight cannot be read in place");
    const int64_t count = weight->num_scales();
    at::Tensor scale = at::empty({count}, at::kDouble);
    at::Tensor zero_point = at::empty({count}, at::kLong);
    std::copy_n(weight->scale->begin(), count, scale.mutable_data_ptr<double>());
    std::copy_n(weight->zero_point->begin(), count, zero_point.mutable_data_ptr<int64_t>());
    if (weight->per_channel) return {scale, zero_point};
    return {scale.reshape({}), zero_point.reshape({})};
}

// The live bias, not a copy; unpack() would read the whole weight for it.
std::optional<at::Tensor> packed_bias(const c10::IValue& packed) {
    const auto holder = holder_of(packed);
    if (auto* linear = dynamic_cast<PackedLinearWeight*>(holder.get())) return linear->bias_;
    if (auto* linear = dynamic_cast<PackedLinearWeightFp16*>(holder.get())) return linear->bias_;
    if (auto* conv = dynamic_cast<PackedConvWeight<2>*>(holder.get())) return conv->bias;
    if (auto* conv = dynamic_cast<PackedConvWeight<3>*>(holder.get())) return conv->bias;
    TORCH_CHECK(false, "qdeq: this packed weight is not one of fbgemm's");
}

bool packed_is_fbgemm(const c10::IValue& packed) {
    const auto holder = holder_of(packed);
    return dynamic_cast<PackedLinearWeight*>(holder.get()) || dynamic_cast<PackedLinearWeightFp16*>(holder.get()) ||
           dynamic_cast<PackedConvWeight<2>*>(holder.get()) || dynamic_cast<PackedConvWeight<3>*>(holder.get());
}

packing::OutType out_type(at::ScalarType dtype) {
    if (dtype == at::kFloat) return packing::OutType::kFloat32;
    if (dtype == at::kBFloat16) return packing::OutType::kBFloat16;
    TORCH_CHECK(dtype == at::kHalf, "qdeq: dtype must be float32, bfloat16 or float16");
    return packing::OutType::kFloat16;
}

// What the caller finds instead of a result, and words.
constexpr const char* kDone = "";
constexpr const char* kNotInPlace = "not in place";
constexpr const char* kDirectConv = "direct";
constexpr const char* kBadScale = "bad scale";
constexpr const char* kBadOut = "bad out";

const char* obstacle(const std::optional<PackedWeight>& weight, bool allow_bad_scales) {
    if (!weight) return kNotInPlace;
    if (weight->format == kDirectConv) return kDirectConv;
    if (allow_bad_scales) return kDone;
    const int64_t count = weight->num_scales();
    const bool good = std::all_of(weight->scale->begin(), weight->scale->begin() + count,
                                  [](float s) { return s > 0.0f && s <= std::numeric_limits<float>::max(); });
    return good ? kDone : kBadScale;
}

void write_floats(const PackedWeight& weight, const at::Tensor& out, std::string_view kernel) {
    const std::vector<float> zero_point(weight.zero_point->begin(), weight.zero_point->end());
    const packing::Qparams qparams{weight.scale->data(), zero_point.data(), weight.per_channel};
    const bool stream = larger_than_caches(static_cast<int64_t>(out.nbytes()));
    packing::to_float(weight.matrix, qparams, target_of(weight, out.strides()), kernels_named(kernel), stream,
                      parallel_for, out.mutable_data_ptr(), out_type(out.scalar_type()));
}

// The second result is defined when the first is kDone.
std::tuple<std::string, at::Tensor> packed_dequantize(const c10::IValue& packed, at::ScalarType dtype,
                                                      std::string_view kernel, bool allow_bad_scales) {
    const auto weight = describe(packed);
    const char* status = obstacle(weight, allow_bad_scales);
    if (*status != 0) return {status, at::empty({0})};
    at::Tensor out = at::empty_strided(weight->sizes, weight->strides, dtype);
    advise_huge_pages(out.mutable_data_ptr(), static_cast<int64_t>(out.nbytes()));
    write_floats(*weight, out, kernel);
    return {kDone, out};
}

std::string packed_dequantize_out(const c10::IValue& packed, const at::Tensor& out, at::ScalarType dtype,
                                  std::string_view kernel, bool allow_bad_scales) {
    const auto weight = describe(packed);
    const char* status = obstacle(weight, allow_bad_scales);
    if (*status != 0) return status;
    if (!out_fits(*weight, out, dtype)) return kBadOut;
    write_floats(*weight, out, kernel);
    return kDone;
}

at::Tensor packed_int_repr(const c10::IValue& packed, std::string_view kernel) {
    const auto weight = describe(packed);
    TORCH_CHECK(weight, "qdeq: this packed weight cannot be read in place");
    at::Tensor out = at::empty_strided(weight->sizes, weight->strides, at::kChar);
    packing::to_int8(weight->matrix, target_of(*weight, out.strides()), kernels_named(kernel), parallel_for,
                     out.mutable_data_ptr<int8_t>());
    return out;
}

}  // namespace
}  // namespace qdeq

// A packed object is passed as Any: its class is found by dynamic_cast, not by the name torch registered it under.
TORCH_LIBRARY_FRAGMENT(qdeq, m) {
    m.def("packed_layout(Any packed) -> (str, int[], int[], bool)", &qdeq::packed_layout);
    m.def("packed_qparams(Any packed) -> (Tensor, Tensor)", &qdeq::packed_qparams);
    m.def("packed_is_fbgemm(Any packed) -> bool", &qdeq::packed_is_fbgemm);
    m.def("packed_bias(Any packed) -> Tensor?", &qdeq::packed_bias);
    m.def("packed_dequantize(Any packed, ScalarType dtype, str kernel, bool allow_bad_scales) -> (str, Tensor)",
          &qdeq::packed_dequantize);
    m.def(
        "packed_dequantize_out(Any packed, Tensor(a!) out, ScalarType dtype, str kernel, bool allow_bad_scales) -> str",
        &qdeq::packed_dequantize_out);
    m.def("packed_int_repr(Any packed, str kernel) -> Tensor", &qdeq::packed_int_repr);
}

PYBIND11_MODULE(_fbgemm, m) {
    m.doc() = "qdeq's readers of fbgemm's packed weights: operators packed_* of the library qdeq";
    m.attr("built_with_torch") = QDEQ_BUILT_WITH_TORCH;
}
