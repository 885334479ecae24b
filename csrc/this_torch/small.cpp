// dequantize_small(q, out): the common small case without the dispatcher.
//
// A call through torch's dispatcher costs as much as dequantizing 64 KiB. Here a whole contiguous int8, uint8 or int32
// tensor goes to a fresh or given contiguous float32 tensor. Whatever is not that plain case, and everything that might
// be an error, is answered with None: the operators decide then.
#include <ATen/EmptyTensor.h>
#include <ATen/TracerMode.h>
#include <ATen/quantized/QTensorImpl.h>
#include <ATen/quantized/Quantizer.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <functional>
#include <optional>

#include "common/channels.h"
#include "common/strides.h"
#include "this_torch/borrowed.h"
#include "this_torch/module.h"

namespace qdeq {
namespace {

constexpr int64_t kMaxBytes = 16 << 20;  // above, the call's own cost no longer shows, and fresh memory needs care

constexpr int64_t kBytesPerThread = 128 << 10;
constexpr int64_t kMinBytesWithoutGil = 1 << 20;  // below, giving it away costs more than it brings

// Empty where some zero point is not as it should be.
std::optional<Channels> per_tensor(const at::PerTensorAffineQuantizer& quantizer, IntType type) {
    const double scale = quantizer.scale();
    const int64_t zero_point = quantizer.zero_point();
    if (!zero_points_in_range(&zero_point, 1, type)) return std::nullopt;
    return Channels::per_tensor(scale, zero_point);
}

std::optional<Channels> per_channel(const at::PerChannelAffineQuantizer& quantizer, int64_t count, IntType type) {
    const at::Tensor scale = quantizer.scales(), zero_point = quantizer.zero_points();
    if (scale.scalar_type() != at::kDouble || zero_point.scalar_type() != at::kLong || scale.numel() != count ||
        zero_point.numel() != count || !scale.is_contiguous() || !zero_point.is_contiguous())
        return std::nullopt;
    const auto* s = scale.const_data_ptr<double>();
    const auto* z = zero_point.const_data_ptr<int64_t>();
    if (!zero_points_in_range(z, count, type)) return std::nullopt;
    return Channels::per_channel(s, z, count);
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
    const RowsFn kernel = core().current_kernels().per_row[type][formula];
    const int64_t numel = all.num_rows * all.row_len;
    if (numel * 4 < 2 * kBytesPerThread) return kernel(all);
    const bool one_row = all.num_rows == 1;
    const int64_t unit = one_row ? 1 : all.row_len;
    const int64_t grain = std::max<int64_t>(1, kBytesPerThread / 4 / unit);
    const auto body = [&](int64_t begin, int64_t end) {
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
    };
    core().parallel_for(numel / unit, grain, std::cref(body));  // by reference: no memory of its own
}

void run(const void* src, IntType type, float* dst, const int64_t (&sizes)[3], const Channels& channels) {
    if (sizes[0] == 1) {
        const RowBlock rows{
            src, dst, sizes[1], sizes[2], sizes[2], sizes[2], 1, channels.scales(), channels.zero_points(), false};
        return run_rows(rows, type, channels.formula);
    }
    const Ints shape(sizes, sizes + 3), strides = dense_strides(shape, false);
    core().dequantize({src, type, type == kInt32 ? 32 : 8, dst, kFloat32, shape, strides, strides, 1, channels.formula,
                       channels.scales(), channels.zero_points()});
}

// The scales of q, and its sizes before the channel axis, along it and after it; empty for what is not plain.
std::optional<Channels> channels_of(const at::Tensor& q, IntType type, int64_t (&sizes)[3]) {
    const at::QuantizerPtr quantizer = at::get_qtensorimpl(q)->quantizer();
    if (quantizer->qscheme() == at::kPerTensorAffine)
        return per_tensor(static_cast<const at::PerTensorAffineQuantizer&>(*quantizer), type);
    if (quantizer->qscheme() != at::kPerChannelAffine) return std::nullopt;
    const auto& by_channel = static_cast<const at::PerChannelAffineQuantizer&>(*quantizer);
    const int64_t axis = by_channel.axis();
    if (axis < 0 || axis >= q.dim()) return std::nullopt;
    sizes[2] = 1;
    for (int64_t d = 0; d < q.dim(); ++d) sizes[d < axis ? 0 : d == axis ? 1 : 2] *= q.size(d);
    return per_channel(by_channel, sizes[1], type);
}

// A new reference to the result, or null where the operators must decide.
PyObject* try_small(PyObject* q_object, PyObject* out_object) {
    if (!THPVariable_CheckExact(q_object) || at::tracer::impl::is_dispatch_enabled() ||
        c10::impl::TorchDispatchModeTLS::any_modes_set())
        return nullptr;
    const at::Tensor& q = THPVariable_Unpack(q_object);
    if (!is_plain(q) || !q.is_quantized()) return nullptr;
    const auto type = int_type(q);
    const int64_t numel = q.numel();
    if (!type || numel == 0 || numel * 4 > kMaxBytes) return nullptr;
    // The rule by which torch chooses the result's memory format.
    if (!q.is_contiguous() || q.suggest_memory_format() != at::MemoryFormat::Contiguous) return nullptr;

    int64_t sizes[3] = {1, 1, numel};
    const std::optional<Channels> channels = channels_of(q, *type, sizes);
    if (!channels || !channels->good()) return nullptr;

    const bool fresh = out_object == Py_None;
    if (!fresh && !THPVariable_CheckExact(out_object)) return nullptr;
    at::Tensor out = fresh ? at::Tensor(at::detail::empty_cpu(q.sizes(), at::TensorOptions(at::kFloat)))
                           : THPVariable_Unpack(out_object);
    if (!fresh && !usable_out(out, q)) return nullptr;
    const auto* src = static_cast<const char*>(q.const_data_ptr());
    auto* dst = static_cast<float*>(out.mutable_data_ptr());
    const auto* first = reinterpret_cast<const char*>(dst);
    if (src < first + numel * 4 && first < src + numel * (*type == kInt32 ? 4 : 1)) return nullptr;
    {
        std::optional<py::gil_scoped_release> others_may_run;
        if (numel * 4 >= kMinBytesWithoutGil) others_may_run.emplace();
        run(src, *type, dst, sizes, *channels);
    }
    return fresh ? THPVariable_Wrap(std::move(out)) : Py_NewRef(out_object);
}

PyObject* dequantize_small(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
    PyObject* result = nullptr;
    try {
        if (count == 2) result = try_small(arguments[0], arguments[1]);
    } catch (const std::exception&) {
        // the operators meet the same trouble and say what it is
    }
    if (result != nullptr) return result;
    PyErr_Clear();
    Py_RETURN_NONE;
}

// Not by pybind11: its calls cost more.
PyMethodDef methods[] = {
    {"dequantize_small", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(dequantize_small)), METH_FASTCALL,
     "dequantize_small(q, out) -> Tensor, or None where the operators must decide"},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

bool add_small(PyObject* module) { return PyModule_AddFunctions(module, methods) == 0; }

}  // namespace qdeq
