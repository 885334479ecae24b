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
#include <list>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/kernels.h"
#include "memory.h"
#include "packed/embedding.h"
#include "packed/emit_rows.h"

namespace qdeq {
namespace {

namespace packing = qdeq::packed;

// ---- what lies in a packed object -------------------------------------------------------------------------------

// A weight that can be read in place. `format` is the packing's name; sizes are those of unpack()[0], strides those of
// unpack()[0].dequantize(). The pointers live as long as the packed object.
struct PackedWeight {
    std::string format;
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

    int64_t num_scales() const {
        if (table) return table->rows;
        const auto tiling = packing::tiling_of(matrix, false);
        return per_channel ? tiling.groups * tiling.rows_per_group : 1;
    }
};

using Packed = torch::CustomClassHolder;

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

std::optional<PackedWeight> describe_embedding(PackedEmbeddingBagWeight& packed) {
    const at::Tensor& bytes = packed.packed_w;
    const int64_t bits = packed.bit_rate();
    if ((bits != 8 && bits != 4 && bits != 2) || bytes.dim() != 2 || bytes.scalar_type() != at::kByte) return {};
    const int64_t rows = bytes.size(0);
    const int64_t cols = (bytes.size(1) - (bits == 8 ? 8 : 4)) * (8 / bits);
    const auto count = static_cast<size_t>(rows);
    if (cols < 0 || !bytes.is_contiguous() || packed.w_scale.size() != count || packed.w_zp.size() != count) return {};
    PackedWeight weight;
    weight.format = "embedding";
    weight.table = packing::EmbeddingTable{
        bytes.const_data_ptr<uint8_t>(), rows, cols, bits, bytes.size(1), packed.w_scale.data(), packed.w_zp.data()};
    weight.sizes = {rows, cols};
    weight.strides = {cols, 1};
    weight.scale = &packed.w_scale;
    weight.per_channel = true;
    return weight;
}

// Empty for every other class, engine and shape.
std::optional<PackedWeight> describe(Packed& packed) {
    if (auto* linear = dynamic_cast<PackedLinearWeight*>(&packed)) return describe_linear(*linear);
    if (auto* conv = dynamic_cast<PackedConvWeight<2>*>(&packed)) return describe_conv<2>(*conv);
    if (auto* conv = dynamic_cast<PackedConvWeight<3>*>(&packed)) return describe_conv<3>(*conv);
    if (auto* table = dynamic_cast<PackedEmbeddingBagWeight*>(&packed)) return describe_embedding(*table);
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

Layout packed_layout(Packed& packed) {
    auto weight = describe(packed);
    if (!weight) return {"", {}, {}, false};
    return {weight->format, weight->sizes, weight->strides, weight->per_channel};
}

// float64 scales and int64 zero points, 0-d or 1-d; copies.
std::tuple<at::Tensor, at::Tensor> packed_qparams(Packed& packed) {
    const auto weight = describe(packed);
    TORCH_CHECK(weight, "qdeq: this packed weight cannot be read in place");
    const int64_t count = weight->num_scales();
    at::Tensor scale = at::empty({count}, at::kDouble);
    at::Tensor zero_point = at::empty({count}, at::kLong);
    std::copy_n(weight->scale->begin(), count, scale.mutable_data_ptr<double>());
    if (weight->table) return {scale, at::zeros({count}, at::kLong)};  // the table's are float32: unpack() has them
    std::copy_n(weight->zero_point->begin(), count, zero_point.mutable_data_ptr<int64_t>());
    if (weight->per_channel) return {scale, zero_point};
    return {scale.reshape({}), zero_point.reshape({})};
}

// The live bias, not a copy; unpack() would read the whole weight for it.
std::optional<at::Tensor> packed_bias(Packed& packed) {
    if (auto* linear = dynamic_cast<PackedLinearWeight*>(&packed)) return linear->bias_;
    if (auto* linear = dynamic_cast<PackedLinearWeightFp16*>(&packed)) return linear->bias_;
    if (auto* conv = dynamic_cast<PackedConvWeight<2>*>(&packed)) return conv->bias;
    if (auto* conv = dynamic_cast<PackedConvWeight<3>*>(&packed)) return conv->bias;
    TORCH_CHECK(false, "qdeq: this packed weight is not one of fbgemm's");
}

bool packed_is_fbgemm(Packed& packed) {
    return dynamic_cast<PackedLinearWeight*>(&packed) || dynamic_cast<PackedLinearWeightFp16*>(&packed) ||
           dynamic_cast<PackedConvWeight<2>*>(&packed) || dynamic_cast<PackedConvWeight<3>*>(&packed);
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
    const bool stream = larger_than_caches(static_cast<int64_t>(out.nbytes()));
    const KernelSet& kernels = kernels_named(kernel);
    const packing::OutType type = out_type(out.scalar_type());
    if (weight.table) {
        packing::embedding_to_float(*weight.table, kernels, stream, parallel_for, out.mutable_data_ptr(), type,
                                    out.stride(0), out.stride(1));
        return;
    }
    const std::vector<float> zero_point(weight.zero_point->begin(), weight.zero_point->end());
    const packing::Qparams qparams{weight.scale->data(), zero_point.data(), weight.per_channel};
    packing::to_float(weight.matrix, qparams, target_of(weight, out.strides()), kernels, stream, parallel_for,
                      out.mutable_data_ptr(), type);
}

// The second result is defined when the first is kDone.
std::tuple<std::string, at::Tensor> packed_dequantize(Packed& packed, at::ScalarType dtype, std::string_view kernel,
                                                      bool allow_bad_scales) {
    const auto weight = describe(packed);
    const char* status = obstacle(weight, allow_bad_scales);
    if (*status != 0) return {status, at::empty({0})};
    at::Tensor out = at::empty_strided(weight->sizes, weight->strides, dtype);
    advise_huge_pages(out.mutable_data_ptr(), static_cast<int64_t>(out.nbytes()));
    write_floats(*weight, out, kernel);
    return {kDone, out};
}

std::string packed_dequantize_out(Packed& packed, const at::Tensor& out, at::ScalarType dtype, std::string_view kernel,
                                  bool allow_bad_scales) {
    const auto weight = describe(packed);
    const char* status = obstacle(weight, allow_bad_scales);
    if (*status != 0) return status;
    if (!out_fits(*weight, out, dtype)) return kBadOut;
    write_floats(*weight, out, kernel);
    return kDone;
}

at::Tensor packed_int_repr(Packed& packed, std::string_view kernel) {
    const auto weight = describe(packed);
    TORCH_CHECK(weight && !weight->table, "qdeq: this packed weight's integers cannot be read in place");
    at::Tensor out = at::empty_strided(weight->sizes, weight->strides, at::kChar);
    packing::to_int8(weight->matrix, target_of(*weight, out.strides()), kernels_named(kernel), parallel_for,
                     out.mutable_data_ptr<int8_t>());
    return out;
}

// ---- for the tests ----------------------------------------------------------------------------------------------

// A linear weight packed with the blocking of another CPU: fbgemm's own code, told its block sizes.
c10::intrusive_ptr<LinearPackedParamsBase> linear_packed_for_test(const at::Tensor& weight, int64_t block_cols,
                                                                  int64_t block_rows) {
    static std::list<fbgemm::BlockingFactors> factors;  // the packed matrix keeps a pointer
    auto& f = factors.emplace_back();
    f.MR = f.NR = f.NR_MIN = f.MCB = 8;
    f.ROW_INTERLEAVE = 4;
    f.KCB = static_cast<int>(block_cols);
    f.NCB = static_cast<int>(block_rows);
    const auto rows = static_cast<int32_t>(weight.size(0)), cols = static_cast<int32_t>(weight.size(1));
    auto packed = std::make_unique<fbgemm::PackBMatrix<int8_t>>(
        fbgemm::matrix_op_t::Transpose, cols, rows, weight.contiguous().const_data_ptr<int8_t>(), cols, nullptr, 1, &f);
    return c10::make_intrusive<PackedLinearWeight>(std::move(packed), std::nullopt, std::vector<int32_t>{},
                                                   std::vector<float>{0.25f}, std::vector<int32_t>{3},
                                                   c10::kPerTensorAffine);
}

// ---- registration -----------------------------------------------------------------------------------------------

// One overload for each of torch's base classes (an argument of type Any costs 20 us to infer); which of the classes
// below it an object has is then found by dynamic_cast.
template <typename Base>
void define(torch::Library& m, const std::string& overload, const std::string& class_name) {
    using Pointer = c10::intrusive_ptr<Base>;
    const std::string self = "(__torch__.torch.classes.quantized." + class_name + " packed";
    const auto schema = [&](const char* name, const char* rest) {
        return torch::schema(("packed_" + std::string(name) + "." + overload + self + rest).c_str());
    };
    m.def(schema("layout", ") -> (str, int[], int[], bool)"), [](const Pointer& p) { return packed_layout(*p); });
    m.def(schema("qparams", ") -> (Tensor, Tensor)"), [](const Pointer& p) { return packed_qparams(*p); });
    m.def(schema("is_fbgemm", ") -> bool"), [](const Pointer& p) { return packed_is_fbgemm(*p); });
    m.def(schema("bias", ") -> Tensor?"), [](const Pointer& p) { return packed_bias(*p); });
    m.def(schema("dequantize", ", ScalarType dtype, str kernel, bool allow_bad_scales) -> (str, Tensor)"),
          [](const Pointer& p, at::ScalarType dtype, std::string_view kernel, bool allow_bad_scales) {
              return packed_dequantize(*p, dtype, kernel, allow_bad_scales);
          });
    m.def(schema("dequantize_out", ", Tensor(a!) out, ScalarType dtype, str kernel, bool allow_bad_scales) -> str"),
          [](const Pointer& p, const at::Tensor& out, at::ScalarType dtype, std::string_view kernel,
             bool allow_bad_scales) { return packed_dequantize_out(*p, out, dtype, kernel, allow_bad_scales); });
    m.def(schema("int_repr", ", str kernel) -> Tensor"),
          [](const Pointer& p, std::string_view kernel) { return packed_int_repr(*p, kernel); });
}

}  // namespace
}  // namespace qdeq

TORCH_LIBRARY_FRAGMENT(qdeq, m) {
    qdeq::define<LinearPackedParamsBase>(m, "linear", "LinearPackedParamsBase");
    qdeq::define<ConvPackedParamsBase<2>>(m, "conv2d", "Conv2dPackedParamsBase");
    qdeq::define<ConvPackedParamsBase<3>>(m, "conv3d", "Conv3dPackedParamsBase");
    qdeq::define<EmbeddingPackedParamsBase>(m, "embedding", "EmbeddingPackedParamsBase");
    m.def("linear_packed_for_test", &qdeq::linear_packed_for_test);
}

PYBIND11_MODULE(_fbgemm, m) {
    m.doc() = "qdeq's readers of fbgemm's packed weights: operators packed_* of the library qdeq";
    m.attr("built_with_torch") = QDEQ_BUILT_WITH_TORCH;
}
