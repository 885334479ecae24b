// Module qdeq._direct: dequantize_direct(q, out), the common small case without the dispatcher.
//
// A call through torch's dispatcher costs as much as dequantizing 64 KiB. Here a whole contiguous int8, uint8 or int32
// tensor goes to a fresh or given contiguous float32 tensor. Whatever is not that plain case, and everything that might
// be an error, is answered with None: the operators decide then. It looks into torch's own objects, so it is only for
// the torch that it was built with.
#include <ATen/EmptyTensor.h>
#include <ATen/quantized/QTensorImpl.h>
#include <ATen/quantized/Quantizer.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/jit/frontend/tracer.h>

#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "work.h"

namespace qdeq {
namespace {

constexpr int64_t kMaxBytes = 16 << 20;  // above, the call's own cost no longer shows, and fresh memory needs care

bool good_scale(float scale) { return scale > 0.0f && scale <= std::numeric_limits<float>::max(); }

bool good_zero_point(int64_t z, IntType type) {
    if (type == kInt32) return z >= INT32_MIN && z <= INT32_MAX;
    return type == kInt8 ? -128 <= z && z <= 127 : 0 <= z && z <= 255;
}

struct Channels {
    std::vector<float> scale, zero_point;
    int32_t int_zero_point = 0;
    const double* doubles = nullptr;  // the tensor's own, where some scale is no float32
};

bool read_per_tensor(const at::PerTensorAffineQuantizer& quantizer, IntType type, Channels* c) {
    const auto scale = static_cast<float>(quantizer.scale());
    const int64_t zero_point = quantizer.zero_point();
    c->scale.assign(1, scale);
    c->int_zero_point = static_cast<int32_t>(zero_point);
    return good_scale(scale) && good_zero_point(zero_point, type);
}

bool read_per_channel(const at::PerChannelAffineQuantizer& quantizer, int64_t count, IntType type, Channels* c) {
    const at::Tensor scale = quantizer.scales(), zero_point = quantizer.zero_points();
    if (scale.scalar_type() != at::kDouble || zero_point.scalar_type() != at::kLong || scale.numel() != count ||
        zero_point.numel() != count || !scale.is_contiguous() || !zero_point.is_contiguous())
        return false;
    const auto* s = scale.const_data_ptr<double>();
    const auto* z = zero_point.const_data_ptr<int64_t>();
    c->scale.resize(count);
    c->zero_point.resize(count);
    bool good = true, exact = true;
    for (int64_t i = 0; i < count; ++i) {
        c->scale[i] = static_cast<float>(s[i]);
        c->zero_point[i] = static_cast<float>(z[i]);
        good &= good_scale(c->scale[i]) && good_zero_point(z[i], type);
        exact &= static_cast<double>(c->scale[i]) == s[i];
    }
    if (!exact) c->doubles = s;
    return good;
}

// A tensor whose elements are in the memory that it names: no view that negates, no wrapper of a transformation.
bool is_plain(const at::Tensor& t) {
    constexpr c10::DispatchKeySet wrappers({c10::DispatchKey::Python, c10::DispatchKey::Functionalize,
                                            c10::DispatchKey::FuncTorchBatched, c10::DispatchKey::FuncTorchGradWrapper,
                                            c10::DispatchKey::Negative});
    return t.defined() && t.device().is_cpu() && t.layout() == at::kStrided && t.has_storage() &&
           !t.key_set().has_any(wrappers);
}

bool usable_out(const at::Tensor& out, const at::Tensor& q) {
    return is_plain(out) && out.scalar_type() == at::kFloat && !out.requires_grad() && out.sizes() == q.sizes() &&
           out.is_contiguous();
}

std::optional<IntType> int_type(const at::Tensor& q) {
    switch (q.scalar_type()) {
        case at::kQInt8:
            return kInt8;
        case at::kQUInt8:
            return kUInt8;
        case at::kQInt32:
            return kInt32;
        default:
            return std::nullopt;
    }
}

// Whole rows of one channel each, or a single row shared between the threads.
void run_rows(const RowBlock& all, IntType type, Formula formula) {
    const RowsFn kernel = current_kernels().per_row[type][formula];
    const int64_t numel = all.num_rows * all.row_len;
    if (numel * 4 < 2 * kBytesPerThread || !threads_are_safe()) return kernel(all);
    const bool one_row = all.num_rows == 1;
    const int64_t unit = one_row ? 1 : all.row_len;
    torch::stable::parallel_for(
        0, numel / unit, std::max<int64_t>(1, kBytesPerThread / 4 / unit), [&](int64_t begin, int64_t end) {
            RowBlock part = all;
            const int64_t int_bytes = type == kInt32 ? 4 : 1;
            part.src = static_cast<const char*>(all.src) + begin * unit * int_bytes;
            part.dst = all.dst + begin * unit;
            if (one_row) {
                part.row_len = end - begin;
            } else {
                part.num_rows = end - begin;
                part.scale = static_cast<const char*>(all.scale) + begin * (formula == kDouble ? 8 : 4);
                part.zero_point = static_cast<const char*>(all.zero_point) + begin * 4;
            }
            kernel(part);
        });
}

void run(const void* src, IntType type, float* dst, const int64_t (&sizes)[3], const Channels& channels,
         bool per_channel) {
    // An int8 or uint8 value less its zero point is exact either way; with int32 the vector units do it sooner.
    const Formula formula = !per_channel ? kSubInt32 : channels.doubles != nullptr ? kDouble : kSubFloat;
    const void* scale =
        channels.doubles != nullptr ? static_cast<const void*>(channels.doubles) : channels.scale.data();
    const void* zero_point = per_channel ? static_cast<const void*>(channels.zero_point.data())
                                         : static_cast<const void*>(&channels.int_zero_point);
    if (sizes[0] == 1) {
        const RowBlock rows{src, dst, sizes[1], sizes[2], sizes[2], sizes[2], 1, scale, zero_point, false};
        return run_rows(rows, type, formula);
    }
    const std::vector<int64_t> shape(sizes, sizes + 3), strides{sizes[1] * sizes[2], sizes[2], 1};
    const int bits = type == kInt32 ? 32 : 8;
    run_on_threads(
        StridedDequantizer({src, type, bits, dst, kFloat32, shape, strides, strides, 1, formula, scale, zero_point}));
}

// A new reference to the result, or null where the operators must decide.
PyObject* try_direct(PyObject* q_object, PyObject* out_object) {
    if (!THPVariable_CheckExact(q_object) || torch::jit::tracer::isTracing() ||
        c10::impl::TorchDispatchModeTLS::any_modes_set())
        return nullptr;
    const at::Tensor& q = THPVariable_Unpack(q_object);
    if (!is_plain(q) || !q.is_quantized()) return nullptr;
    const auto type = int_type(q);
    const int64_t numel = q.numel();
    if (!type || numel == 0 || numel * 4 > kMaxBytes) return nullptr;
    // The rule by which torch chooses the result's memory format.
    if (!q.is_contiguous() || q.suggest_memory_format() != at::MemoryFormat::Contiguous) return nullptr;

    const at::QuantizerPtr quantizer = at::get_qtensorimpl(q)->quantizer();
    const bool per_channel = quantizer->qscheme() == at::kPerChannelAffine;
    Channels channels;
    int64_t sizes[3] = {1, 1, numel};  // before the channel axis, the axis, after it
    if (per_channel) {
        const auto& by_channel = static_cast<const at::PerChannelAffineQuantizer&>(*quantizer);
        const int64_t axis = by_channel.axis();
        if (axis < 0 || axis >= q.dim()) return nullptr;
        sizes[2] = 1;
        for (int64_t d = 0; d < q.dim(); ++d) sizes[d < axis ? 0 : d == axis ? 1 : 2] *= q.size(d);
        if (!read_per_channel(by_channel, sizes[1], *type, &channels)) return nullptr;
    } else if (quantizer->qscheme() != at::kPerTensorAffine ||
               !read_per_tensor(static_cast<const at::PerTensorAffineQuantizer&>(*quantizer), *type, &channels)) {
        return nullptr;
    }

    const bool fresh = out_object == Py_None;
    if (!fresh && !THPVariable_CheckExact(out_object)) return nullptr;
    at::Tensor out = fresh ? at::Tensor(at::detail::empty_cpu(q.sizes(), at::TensorOptions(at::kFloat)))
                           : THPVariable_Unpack(out_object);
    if (!fresh && !usable_out(out, q)) return nullptr;
    const auto* src = static_cast<const char*>(q.const_data_ptr());
    auto* dst = static_cast<float*>(out.mutable_data_ptr());
    const auto* first = reinterpret_cast<const char*>(dst);
    if (src < first + numel * 4 && first < src + numel * (*type == kInt32 ? 4 : 1)) return nullptr;
    run(src, *type, dst, sizes, channels, per_channel);
    return fresh ? THPVariable_Wrap(std::move(out)) : Py_NewRef(out_object);
}

PyObject* dequantize_direct(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
    PyObject* result = nullptr;
    try {
        if (count == 2) result = try_direct(arguments[0], arguments[1]);
    } catch (const std::exception&) {
        // the operators meet the same trouble and say what it is
    }
    if (result != nullptr) return result;
    PyErr_Clear();
    Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"dequantize_direct", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(dequantize_direct)), METH_FASTCALL,
     "dequantize_direct(q, out) -> Tensor, or None where the operators must decide"},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace
}  // namespace qdeq

PYBIND11_MODULE(_direct, m) {
    m.doc() = "qdeq's short way in for small tensors";
    // This module has the kernels once more, and so a choice of its own.
    m.def("force_kernel",
          [](const std::optional<std::string>& name) { return qdeq::force_kernels(name ? name->c_str() : nullptr); });
    m.def("current_kernel", [] { return std::string(qdeq::current_kernels().name); });
    PyModule_AddFunctions(m.ptr(), qdeq::methods);
}
