#include "this_torch/packed_weight.h"

#include <ATen/native/quantized/cpu/fbgemm_utils.h>

#include <utility>

#include "common/channels.h"
#include "common/strides.h"

namespace qdeq {
namespace {

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
    return zero_points_in_range(zero_point.data(), weight.num_scales(), kInt8);  // else unpack() says what is wrong
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

// unpack() makes a channels_last tensor; a transposed convolution's is then permuted, in_channels first.
Ints conv_strides(const PackedWeight& weight) {
    if (weight.transposed) return dense_strides(weight.sizes, false);
    return fresh_strides(weight.sizes, dense_strides(weight.sizes, true));
}

template <int kSpatialDim>
std::optional<packing::Matrix> conv_matrix(fbgemm::PackWeightsForConv<kSpatialDim>& w, int64_t taps,
                                           const char*& format) {
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

}  // namespace

int64_t PackedWeight::num_scales() const {
    if (table) return table->rows;
    const auto tiling = packing::tiling_of(matrix, false);
    return per_channel ? tiling.groups * tiling.rows_per_group : 1;
}

std::optional<PackedWeight> describe(Packed& packed) {
    if (auto* linear = dynamic_cast<PackedLinearWeight*>(&packed)) return describe_linear(*linear);
    if (auto* conv = dynamic_cast<PackedConvWeight<2>*>(&packed)) return describe_conv<2>(*conv);
    if (auto* conv = dynamic_cast<PackedConvWeight<3>*>(&packed)) return describe_conv<3>(*conv);
    if (auto* table = dynamic_cast<PackedEmbeddingBagWeight*>(&packed)) return describe_embedding(*table);
    return std::nullopt;
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

bool packed_bias(Packed& packed, std::optional<at::Tensor>* bias) {
    if (auto* linear = dynamic_cast<PackedLinearWeight*>(&packed)) return *bias = linear->bias_, true;
    if (auto* linear = dynamic_cast<PackedLinearWeightFp16*>(&packed)) return *bias = linear->bias_, true;
    if (auto* conv = dynamic_cast<PackedConvWeight<2>*>(&packed)) return *bias = conv->bias, true;
    if (auto* conv = dynamic_cast<PackedConvWeight<3>*>(&packed)) return *bias = conv->bias, true;
    return false;
}

}  // namespace qdeq
