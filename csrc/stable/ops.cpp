// The operators: schemas, checks, output allocation, threads. No arithmetic.
//
// A check that fails here says little: qdeq/ops.py and its callers find out what was wrong and word it. These checks
// are the last fence, for callers who reach the operators by other ways.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/kernels.h"
#include "kernels/strided.h"
#include "memory.h"
#include "work.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Ints = std::vector<int64_t>;

int32_t raw_dtype(const Tensor& t) {
    int32_t dtype;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(t.get(), &dtype));
    return dtype;
}

bool has_dtype(const Tensor& t, ScalarType type) { return raw_dtype(t) == static_cast<int32_t>(type); }

Ints to_ints(torch::headeronly::IntHeaderOnlyArrayRef values) { return Ints(values.begin(), values.end()); }

// Scales and zero points as the kernels take them.
struct Channels {
    qdeq::Formula formula;
    std::vector<float> scale, zero_point;
    std::vector<double> double_scale;
    std::vector<int32_t> int_zero_point;

    const void* scales() const {
        return formula == qdeq::kDouble ? static_cast<const void*>(double_scale.data()) : scale.data();
    }
    const void* zero_points() const {
        return formula == qdeq::kSubInt32 ? static_cast<const void*>(int_zero_point.data()) : zero_point.data();
    }
};

void check_zero_point(int64_t zero_point, qdeq::IntType type) {
    const int64_t low = type == qdeq::kInt8 ? -128 : type == qdeq::kUInt8 ? 0 : std::numeric_limits<int32_t>::min();
    const int64_t high = type == qdeq::kInt8 ? 127 : type == qdeq::kUInt8 ? 255 : std::numeric_limits<int32_t>::max();
    STD_TORCH_CHECK(low <= zero_point && zero_point <= high, "qdeq: zero point out of the integers' range");
}

// True where every scale is positive and finite in float32 too; exact says whether all are float32 values.
template <typename T>
bool usable_scales(const T* scale, int64_t count, float* as_float, bool* exact) {
    bool good = true, same = true;
    for (int64_t i = 0; i < count; ++i) {
        const auto narrow = static_cast<float>(scale[i]);
        as_float[i] = narrow;
        same &= static_cast<T>(narrow) == scale[i];
        good &= narrow > 0.0f && narrow <= std::numeric_limits<float>::max();
    }
    *exact = same;
    return good;
}

Channels per_channel(const Tensor& scale, const Tensor& zero_point, bool per_tensor, qdeq::IntType type,
                     bool allow_bad_scales) {
    STD_TORCH_CHECK(scale.is_cpu() && zero_point.is_cpu() && scale.is_contiguous() && zero_point.is_contiguous() &&
                        scale.numel() == zero_point.numel(),
                    "qdeq: scale and zero_point must be contiguous CPU tensors of one length");
    const int64_t count = scale.numel();
    const bool float_zeros = has_dtype(zero_point, ScalarType::Float);
    STD_TORCH_CHECK(float_zeros || has_dtype(zero_point, ScalarType::Long),
                    "qdeq: zero_point must be int64 or float32");
    Channels c;
    c.scale.resize(count);
    bool exact = true, good;
    if (has_dtype(scale, ScalarType::Double)) {
        const auto* values = static_cast<const double*>(scale.data_ptr());
        good = usable_scales(values, count, c.scale.data(), &exact);
        if (!exact && !per_tensor && !float_zeros) c.double_scale.assign(values, values + count);
    } else {
        STD_TORCH_CHECK(has_dtype(scale, ScalarType::Float), "qdeq: scale must be float64 or float32");
        good = usable_scales(static_cast<const float*>(scale.data_ptr()), count, c.scale.data(), &exact);
    }
    STD_TORCH_CHECK(good || allow_bad_scales, "qdeq: a scale is not a positive finite float32");
    c.formula = c.double_scale.empty() ? qdeq::kSubFloat : qdeq::kDouble;
    if (float_zeros) {
        const auto* values = static_cast<const float*>(zero_point.data_ptr());
        c.zero_point.assign(values, values + count);
        return c;
    }
    const auto* values = static_cast<const int64_t*>(zero_point.data_ptr());
    for (int64_t i = 0; i < count; ++i) check_zero_point(values[i], type);
    if (per_tensor && type == qdeq::kInt32) {
        c.formula = qdeq::kSubInt32;
        c.int_zero_point.assign(values, values + count);
    } else {
        c.zero_point.assign(values, values + count);
    }
    return c;
}

// Torch's rule for the memory format that dequantize() gives its result (c10's is_channels_last_strides_2d and _3d).
bool like_channels_last(const Ints& sizes, const Ints& strides) {
    const int64_t dims = static_cast<int64_t>(sizes.size());
    if ((dims != 4 && dims != 5) || strides[1] == 0) return false;
    int64_t smallest = 0;
    for (int64_t step = 0; step < dims; ++step) {
        const int64_t d = step == 0 ? 1 : step == dims - 1 ? 0 : dims - step;
        if (sizes[d] == 0 || strides[d] < smallest) return false;
        if (d == 0 && smallest == strides[1]) return false;
        smallest = strides[d] * std::max<int64_t>(sizes[d], 1);
    }
    return true;
}

Ints fresh_strides(const Ints& sizes, const Ints& src_strides) {
    const int64_t dims = static_cast<int64_t>(sizes.size());
    Ints order;  // innermost first
    const bool channels_last = like_channels_last(sizes, src_strides);
    if (channels_last) order.push_back(1);
    for (int64_t d = dims - 1; d >= 0; --d)
        if (!channels_last || d != 1) order.push_back(d);
    Ints strides(dims);
    int64_t next = 1;
    for (const int64_t d : order) {
        strides[d] = next;
        next *= std::max<int64_t>(sizes[d], 1);
    }
    return strides;
}

Ints contiguous_strides(const Ints& sizes) { return fresh_strides(sizes, Ints(sizes.size(), 0)); }

int64_t extent(const Ints& sizes, const Ints& strides) {  // elements between the first and one past the last
    int64_t last = 0;
    for (size_t d = 0; d < sizes.size(); ++d) {
        if (sizes[d] == 0) return 0;
        last += (sizes[d] - 1) * strides[d];
    }
    return last + 1;
}

// Sufficient and cheap: in order of stride, each dimension steps over everything inside it.
bool may_overlap_itself(const Ints& sizes, const Ints& strides) {
    std::vector<std::pair<int64_t, int64_t>> dims;
    for (size_t d = 0; d < sizes.size(); ++d)
        if (sizes[d] > 1) dims.emplace_back(strides[d], sizes[d]);
    std::sort(dims.begin(), dims.end());
    int64_t reach = 0;
    for (const auto& [stride, size] : dims) {
        if (stride <= reach) return true;
        reach += stride * (size - 1);
    }
    return false;
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
    int64_t bytes() const { return (extent(sizes, strides) * bits + 7) / 8; }
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
        s.strides = contiguous_strides(shape);
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
        return per_channel(scale, zero_point, false, type, allow_bad_scales);
    }
    const auto scale = torch::stable::detail::to<double>(call("aten::q_scale"));
    const auto zero_point = torch::stable::detail::to<int64_t>(call("aten::q_zero_point"));
    Channels c;
    c.scale.resize(1);
    bool exact;
    STD_TORCH_CHECK(usable_scales(&scale, 1, c.scale.data(), &exact) || allow_bad_scales,
                    "qdeq: a scale is not a positive finite float32");
    check_zero_point(zero_point, type);
    c.formula = type == qdeq::kInt32 ? qdeq::kSubInt32 : qdeq::kSubFloat;
    if (type == qdeq::kInt32)
        c.int_zero_point.assign(1, static_cast<int32_t>(zero_point));
    else
        c.zero_point.assign(1, static_cast<float>(zero_point));
    return c;
}

void run(const Source& source, const Channels& channels, int64_t axis, const Tensor& out, ScalarType dtype) {
    STD_TORCH_CHECK(axis >= -1 && axis < static_cast<int64_t>(source.sizes.size()), "qdeq: axis out of range");
    const int64_t num_channels = axis < 0 ? 1 : source.sizes[axis];
    STD_TORCH_CHECK(static_cast<int64_t>(channels.scale.size()) == num_channels, "qdeq: wrong number of scales");
    const qdeq::StridedDequantizer work({source.data, source.type, source.bits, out.data_ptr(), out_type(dtype),
                                         source.sizes, source.strides, to_ints(out.strides()), axis, channels.formula,
                                         channels.scales(), channels.zero_points()});
    qdeq::run_on_threads(work);
}

Tensor fresh(const Source& source, ScalarType dtype) {
    const Ints strides = fresh_strides(source.sizes, source.strides);
    AtenTensorHandle handle;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(source.sizes.size()),
                                                           source.sizes.data(), strides.data(),
                                                           static_cast<int32_t>(dtype), 0, -1, &handle));
    Tensor out(handle);
    qdeq::advise_huge_pages(out.data_ptr(), out.numel() * static_cast<int64_t>(out.element_size()));
    return out;
}

void check_out(const Source& source, const Tensor& out, ScalarType dtype) {
    const Ints sizes = to_ints(out.sizes()), strides = to_ints(out.strides());
    STD_TORCH_CHECK(
        out.is_cpu() && has_dtype(out, dtype) && sizes == source.sizes && !may_overlap_itself(sizes, strides),
        "qdeq: out must be a CPU tensor of the source's shape and of dtype, without overlapping elements");
    const auto* first = static_cast<const char*>(out.data_ptr());
    const auto* last = first + extent(sizes, strides) * static_cast<int64_t>(out.element_size());
    const auto* src = static_cast<const char*>(source.data);
    STD_TORCH_CHECK(last <= src || src + source.bytes() <= first, "qdeq: out must not share memory with the source");
}

Tensor dequantize(Tensor ints, Tensor scale, Tensor zero_point, int64_t axis, Ints shape, int64_t bits,
                  ScalarType dtype, bool allow_bad_scales) {
    const Source source = plain_source(ints, shape, bits);
    const Channels channels = per_channel(scale, zero_point, axis < 0, source.type, allow_bad_scales);
    Tensor out = fresh(source, dtype);
    run(source, channels, axis, out, dtype);
    return out;
}

void dequantize_out(Tensor ints, Tensor scale, Tensor zero_point, int64_t axis, Ints shape, int64_t bits,
                    ScalarType dtype, bool allow_bad_scales, Tensor out) {
    const Source source = plain_source(ints, shape, bits);
    const Channels channels = per_channel(scale, zero_point, axis < 0, source.type, allow_bad_scales);
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
}

STABLE_TORCH_LIBRARY_IMPL(qdeq, CPU, m) {
    m.impl("dequantize", TORCH_BOX(&dequantize));
    m.impl("dequantize_out", TORCH_BOX(&dequantize_out));
}

STABLE_TORCH_LIBRARY_IMPL(qdeq, QuantizedCPU, m) {
    m.impl("dequantize_quantized", TORCH_BOX(&dequantize_quantized));
    m.impl("dequantize_quantized_out", TORCH_BOX(&dequantize_quantized_out));
}
