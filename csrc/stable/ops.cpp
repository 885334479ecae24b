// The operators: schemas, checks, output allocation, threads. No arithmetic.
//
// A check that fails here says little: qdeq/weights/native.py and its callers find out what was wrong and word it.
// These checks are the last fence, for callers who reach the operators by other ways.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <limits>
#include <vector>

#include "common/channels.h"
#include "common/memory.h"
#include "common/strides.h"
#include "kernels/kernels.h"
#include "kernels/strided.h"
#include "stable/threads.h"

namespace {

using qdeq::Channels;
using qdeq::Ints;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

int32_t raw_dtype(const Tensor& t) {
    int32_t dtype;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(t.get(), &dtype));
    return dtype;
}

bool has_dtype(const Tensor& t, ScalarType type) { return raw_dtype(t) == static_cast<int32_t>(type); }

Ints to_ints(torch::headeronly::IntHeaderOnlyArrayRef values) { return Ints(values.begin(), values.end()); }

template <typename S, typename Z>
Channels checked_channels(const S* scale, const Z* zero_point, int64_t count, bool per_tensor, qdeq::IntType type,
                          bool allow_bad_scales) {
    const auto with_good_scales = [&](Channels channels) {
        STD_TORCH_CHECK(allow_bad_scales || channels.good(), "qdeq: a scale is not a positive finite float32");
        return channels;
    };
    if constexpr (std::numeric_limits<Z>::is_integer) {
        STD_TORCH_CHECK(qdeq::zero_points_in_range(zero_point, count, type),
                        "qdeq: zero point out of the integers' range");
        if (per_tensor) return with_good_scales(Channels::per_tensor(scale[0], zero_point[0]));
    }
    return with_good_scales(Channels::per_channel(scale, zero_point, count));
}

Channels channels_of(const Tensor& scale, const Tensor& zero_point, bool per_tensor, qdeq::IntType type,
                     bool allow_bad_scales) {
    const int64_t count = scale.numel();
    STD_TORCH_CHECK(scale.is_cpu() && zero_point.is_cpu() && scale.is_contiguous() && zero_point.is_contiguous() &&
                        count == zero_point.numel() && (!per_tensor || count == 1),
                    "qdeq: scale and zero_point must be contiguous CPU tensors of one length");
    const auto with_zero_points = [&](const auto* scales) {
        if (has_dtype(zero_point, ScalarType::Float))
            return checked_channels(scales, static_cast<const float*>(zero_point.data_ptr()), count, per_tensor, type,
                                    allow_bad_scales);
        STD_TORCH_CHECK(has_dtype(zero_point, ScalarType::Long), "qdeq: zero_point must be int64 or float32");
        return checked_channels(scales, static_cast<const int64_t*>(zero_point.data_ptr()), count, per_tensor, type,
                                allow_bad_scales);
    };
    if (has_dtype(scale, ScalarType::Double)) return with_zero_points(static_cast<const double*>(scale.data_ptr()));
    STD_TORCH_CHECK(has_dtype(scale, ScalarType::Float), "qdeq: scale must be float64 or float32");
    return with_zero_points(static_cast<const float*>(scale.data_ptr()));
}

qdeq::OutType out_type(ScalarType dtype) {
    if (dtype == ScalarType::Float) return qdeq::kFloat32;
    if (dtype == ScalarType::BFloat16) return qdeq::kBFloat16;
    STD_TORCH_CHECK(dtype == ScalarType::Half, "qdeq: dtype must be float32, bfloat16 or float16");
    return qdeq::kFloat16;
}

struct Source {
    const void* data;
    qdeq::IntType type;
    int bits;
    Ints sizes, strides;
    int64_t bytes() const { return (qdeq::extent(sizes, strides) * bits + 7) / 8; }
};

Source plain_source(const Tensor& t, const Ints& shape, int64_t bits) {
    STD_TORCH_CHECK(t.is_cpu(), "qdeq: the integers must be on the CPU");
    Source s{t.data_ptr(), qdeq::kUInt8, static_cast<int>(bits), to_ints(t.sizes()), to_ints(t.strides())};
    if (bits == 2 || bits == 4) {
        int64_t numel = 1;
        for (const int64_t size : shape) numel *= size;
        STD_TORCH_CHECK(has_dtype(t, ScalarType::Byte) && t.is_contiguous() && t.numel() >= (numel * bits + 7) / 8,
                        "qdeq: sub-byte values must be packed in contiguous bytes, and enough of them");
        s.sizes = shape;
        s.strides = qdeq::dense_strides(shape, false);
        return s;
    }
    STD_TORCH_CHECK(s.sizes == shape, "qdeq: shape must be that of the integers");
    s.type = has_dtype(t, ScalarType::Char) ? qdeq::kInt8 : has_dtype(t, ScalarType::Int) ? qdeq::kInt32 : qdeq::kUInt8;
    STD_TORCH_CHECK(s.type != qdeq::kUInt8 || has_dtype(t, ScalarType::Byte), "qdeq: expected int8, uint8 or int32");
    s.bits = s.type == qdeq::kInt32 ? 32 : 8;
    return s;
}

Source quantized_source(const Tensor& q) {
    Source s{q.data_ptr(), qdeq::kUInt8, 8, to_ints(q.sizes()), to_ints(q.strides())};
    switch (static_cast<ScalarType>(raw_dtype(q))) {
        case ScalarType::QInt8:
            s.type = qdeq::kInt8;
            break;
        case ScalarType::QUInt8:
            break;
        case ScalarType::QInt32:
            s.type = qdeq::kInt32;
            s.bits = 32;
            break;
        case ScalarType::QUInt4x2:
        case ScalarType::QUInt2x4:
            s.bits = static_cast<ScalarType>(raw_dtype(q)) == ScalarType::QUInt4x2 ? 4 : 2;
            STD_TORCH_CHECK(q.is_contiguous() && q.storage_offset() == 0, "qdeq: sub-byte views are not supported");
            break;
        default:
            STD_TORCH_CHECK(false, "qdeq: expected a quantized tensor");
    }
    return s;
}

Channels quantized_channels(const Tensor& q, bool is_per_channel, qdeq::IntType type, bool allow_bad_scales,
                            int64_t* axis) {
    const auto call = [&](const char* name) {
        Tensor copy = q;
        StableIValue stack[1] = {torch::stable::detail::from(copy)};
        STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, "", stack, TORCH_ABI_VERSION));
        return stack[0];
    };
    *axis = -1;
    if (is_per_channel) {
        const auto scale = torch::stable::detail::to<Tensor>(call("aten::q_per_channel_scales"));
        const auto zero_point = torch::stable::detail::to<Tensor>(call("aten::q_per_channel_zero_points"));
        *axis = torch::stable::detail::to<int64_t>(call("aten::q_per_channel_axis"));
        return channels_of(scale, zero_point, false, type, allow_bad_scales);
    }
    const auto scale = torch::stable::detail::to<double>(call("aten::q_scale"));
    const auto zero_point = torch::stable::detail::to<int64_t>(call("aten::q_zero_point"));
    return checked_channels(&scale, &zero_point, 1, true, type, allow_bad_scales);
}

void run(const Source& source, const Channels& channels, int64_t axis, const Tensor& out, ScalarType dtype) {
    STD_TORCH_CHECK(axis >= -1 && axis < static_cast<int64_t>(source.sizes.size()), "qdeq: axis out of range");
    const int64_t num_channels = axis < 0 ? 1 : source.sizes[axis];
    STD_TORCH_CHECK(static_cast<int64_t>(channels.scale.size()) == num_channels, "qdeq: wrong number of scales");
    qdeq::dequantize_on_threads({source.data, source.type, source.bits, out.data_ptr(), out_type(dtype), source.sizes,
                                 source.strides, to_ints(out.strides()), axis, channels.formula, channels.scales(),
                                 channels.zero_points()});
}

Tensor fresh(const Ints& sizes, const Ints& strides, ScalarType dtype) {
    AtenTensorHandle handle;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
        static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), static_cast<int32_t>(dtype), 0, -1, &handle));
    Tensor out(handle);
    qdeq::advise_huge_pages(out.data_ptr(), out.numel() * static_cast<int64_t>(out.element_size()));
    return out;
}

Tensor fresh(const Source& source, ScalarType dtype) {
    return fresh(source.sizes, qdeq::fresh_strides(source.sizes, source.strides), dtype);
}

// torch.empty on the CPU, on huge pages where it is large.
Tensor empty(Ints sizes, ScalarType dtype) { return fresh(sizes, qdeq::dense_strides(sizes, false), dtype); }

void check_out(const Source& source, const Tensor& out, ScalarType dtype) {
    const Ints sizes = to_ints(out.sizes()), strides = to_ints(out.strides());
    STD_TORCH_CHECK(
        out.is_cpu() && has_dtype(out, dtype) && sizes == source.sizes && !qdeq::may_overlap_itself(sizes, strides),
        "qdeq: out must be a CPU tensor of the source's shape and of dtype, without overlapping elements");
    const auto* first = static_cast<const char*>(out.data_ptr());
    const auto* last = first + qdeq::extent(sizes, strides) * static_cast<int64_t>(out.element_size());
    const auto* src = static_cast<const char*>(source.data);
    STD_TORCH_CHECK(last <= src || src + source.bytes() <= first, "qdeq: out must not share memory with the source");
}

Tensor dequantize(Tensor ints, Tensor scale, Tensor zero_point, int64_t axis, Ints shape, int64_t bits,
                  ScalarType dtype, bool allow_bad_scales) {
    const Source source = plain_source(ints, shape, bits);
    const Channels channels = channels_of(scale, zero_point, axis < 0, source.type, allow_bad_scales);
    Tensor out = fresh(source, dtype);
    run(source, channels, axis, out, dtype);
    return out;
}

void dequantize_out(Tensor ints, Tensor scale, Tensor zero_point, int64_t axis, Ints shape, int64_t bits,
                    ScalarType dtype, bool allow_bad_scales, Tensor out) {
    const Source source = plain_source(ints, shape, bits);
    const Channels channels = channels_of(scale, zero_point, axis < 0, source.type, allow_bad_scales);
    check_out(source, out, dtype);
    run(source, channels, axis, out, dtype);
}

Tensor dequantize_quantized(Tensor q, bool is_per_channel, ScalarType dtype, bool allow_bad_scales) {
    const Source source = quantized_source(q);
    int64_t axis;
    const Channels channels = quantized_channels(q, is_per_channel, source.type, allow_bad_scales, &axis);
    Tensor out = fresh(source, dtype);
    run(source, channels, axis, out, dtype);
    return out;
}

void dequantize_quantized_out(Tensor q, bool is_per_channel, ScalarType dtype, bool allow_bad_scales, Tensor out) {
    const Source source = quantized_source(q);
    int64_t axis;
    const Channels channels = quantized_channels(q, is_per_channel, source.type, allow_bad_scales, &axis);
    check_out(source, out, dtype);
    run(source, channels, axis, out, dtype);
}

// shape: matrices, rows, columns. codes: matrices, rows, bytes of a row. zero: empty for none.
void dequantize_codes_out(Tensor codes, Tensor values, Tensor scale, Tensor zero, Ints shape, Ints block,
                          ScalarType dtype, Tensor out) {
    STD_TORCH_CHECK(shape.size() == 3 && block.size() == 2 && block[0] > 0 && block[1] > 0, "qdeq: shape or block");
    const auto is_float32 = [](const Tensor& t) {
        return t.is_cpu() && t.is_contiguous() && has_dtype(t, ScalarType::Float);
    };
    int bits = 1;
    while (bits < 8 && values.numel() != int64_t{1} << bits) ++bits;
    STD_TORCH_CHECK(is_float32(values) && values.numel() == int64_t{1} << bits,
                    "qdeq: values must be 2 to 256 float32");
    const Ints stored = to_ints(codes.sizes());
    STD_TORCH_CHECK(codes.is_cpu() && codes.is_contiguous() && has_dtype(codes, ScalarType::Byte) &&
                        stored.size() == 3 && stored[0] == shape[0] && stored[1] == shape[1] && shape[2] >= 0 &&
                        shape[2] <= std::numeric_limits<int64_t>::max() / 8 && stored[2] >= (shape[2] * bits + 7) / 8,
                    "qdeq: codes must be contiguous rows of bytes, and enough of them");
    const auto in_grid = [](int64_t size, int64_t step) { return size / step + (size % step != 0); };
    const Ints grid = {shape[0], in_grid(shape[1], block[0]), in_grid(shape[2], block[1])};
    STD_TORCH_CHECK(is_float32(scale) && to_ints(scale.sizes()) == grid, "qdeq: scale must be a float32 grid");
    STD_TORCH_CHECK(is_float32(zero) && (zero.numel() == 0 || to_ints(zero.sizes()) == grid), "qdeq: zero likewise");
    STD_TORCH_CHECK(out.is_cpu() && out.is_contiguous() && has_dtype(out, dtype) && to_ints(out.sizes()) == shape,
                    "qdeq: out must be contiguous, of dtype and shape");
    const auto* src = static_cast<const uint8_t*>(codes.data_ptr());
    auto* dst = static_cast<uint8_t*>(out.data_ptr());
    STD_TORCH_CHECK(dst + out.numel() * static_cast<int64_t>(out.element_size()) <= src || src + codes.numel() <= dst,
                    "qdeq: out must not share memory with the codes");
    if (out.numel() == 0) return;
    qdeq::dequantize_grid_on_threads({src, dst, out_type(dtype), shape[0], shape[1], shape[2], stored[2], block[0],
                                      block[1], static_cast<const float*>(scale.data_ptr()),
                                      zero.numel() == 0 ? nullptr : static_cast<const float*>(zero.data_ptr()), bits,
                                      static_cast<const float*>(values.data_ptr())});
}

}  // namespace

STABLE_TORCH_LIBRARY(qdeq, m) {
    m.def(
        "dequantize(Tensor int_repr, Tensor scale, Tensor zero_point, int axis, int[] shape, int bits, "
        "ScalarType dtype, bool allow_bad_scales) -> Tensor");
    m.def(
        "dequantize_out(Tensor int_repr, Tensor scale, Tensor zero_point, int axis, int[] shape, int bits, "
        "ScalarType dtype, bool allow_bad_scales, Tensor(a!) out) -> ()");
    m.def("dequantize_quantized(Tensor q, bool per_channel, ScalarType dtype, bool allow_bad_scales) -> Tensor");
    m.def(
        "dequantize_quantized_out(Tensor q, bool per_channel, ScalarType dtype, bool allow_bad_scales, "
        "Tensor(a!) out) -> ()");
    m.def(
        "dequantize_codes_out(Tensor codes, Tensor values, Tensor scale, Tensor zero, int[] shape, int[] block, "
        "ScalarType dtype, Tensor(a!) out) -> ()");
    m.def("empty(int[] sizes, ScalarType dtype) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(qdeq, CompositeExplicitAutograd, m) { m.impl("empty", TORCH_BOX(&empty)); }

STABLE_TORCH_LIBRARY_IMPL(qdeq, CPU, m) {
    m.impl("dequantize", TORCH_BOX(&dequantize));
    m.impl("dequantize_out", TORCH_BOX(&dequantize_out));
    m.impl("dequantize_codes_out", TORCH_BOX(&dequantize_codes_out));
}

STABLE_TORCH_LIBRARY_IMPL(qdeq, QuantizedCPU, m) {
    m.impl("dequantize_quantized", TORCH_BOX(&dequantize_quantized));
    m.impl("dequantize_quantized_out", TORCH_BOX(&dequantize_quantized_out));
}
