// dequantize_direct(q, out): the common small case without the dispatcher.
//
// A call through torch's dispatcher costs as much as dequantizing 64 KiB. Here a whole contiguous int8, uint8 or int32
// tensor goes to a fresh or given contiguous float32 tensor by raw pointers, asked for through the tensors' public
// Python methods, so no header of torch's Python binding (which is not part of the stable ABI) is needed. Whatever is
// not that plain case, and everything that might be an error, is answered with None: the operators decide then.
#include "direct.h"

#include <Python.h>

#include "work.h"

namespace qdeq {
namespace {

constexpr int64_t kMaxBytes = 16 << 20;  // above, the call's own cost no longer shows, and fresh memory needs care

// Owns one reference; false where the call behind it failed.
class Ref {
  public:
    explicit Ref(PyObject* object) : object_(object) {}
    Ref(const Ref&) = delete;
    Ref& operator=(const Ref&) = delete;
    ~Ref() { Py_XDECREF(object_); }
    explicit operator bool() const { return object_ != nullptr; }
    PyObject* get() const { return object_; }
    PyObject* release() {
        PyObject* object = object_;
        object_ = nullptr;
        return object;
    }

  private:
    PyObject* object_;
};

// Names and objects of torch, looked up once and kept for the life of the process.
struct Names {
    PyObject *tensor_type, *empty, *float32, *float64, *int64, *dtypes[3], *per_tensor, *per_channel;
    PyObject *is_tracing, *num_modes;
    PyObject *is_contiguous, *stride, *is_cpu, *dtype, *shape, *data_ptr, *qscheme, *q_scale, *q_zero_point;
    PyObject *scales, *zero_points, *axis, *requires_grad;
};

PyObject* attribute(PyObject* object, const char* name) {
    return object == nullptr ? nullptr : PyObject_GetAttrString(object, name);
}

const Names* names() {
    static const Names* const found = []() -> const Names* {
        Ref torch(PyImport_ImportModule("torch"));
        Ref native(attribute(torch.get(), "_C"));
        auto* n = new Names;
        const struct {
            PyObject** slot;
            PyObject* owner;
            const char* name;
        } objects[] = {
            {&n->tensor_type, torch.get(), "Tensor"},
            {&n->empty, torch.get(), "empty"},
            {&n->float32, torch.get(), "float32"},
            {&n->float64, torch.get(), "float64"},
            {&n->int64, torch.get(), "int64"},
            {&n->dtypes[kInt8], torch.get(), "qint8"},
            {&n->dtypes[kUInt8], torch.get(), "quint8"},
            {&n->dtypes[kInt32], torch.get(), "qint32"},
            {&n->per_channel, torch.get(), "per_channel_affine"},
            {&n->per_tensor, torch.get(), "per_tensor_affine"},
            {&n->is_tracing, native.get(), "_is_tracing"},
            {&n->num_modes, native.get(), "_len_torch_dispatch_stack"},
        };
        for (const auto& entry : objects)
            if ((*entry.slot = attribute(entry.owner, entry.name)) == nullptr) return nullptr;
        const struct {
            PyObject** slot;
            const char* name;
        } strings[] = {

            {&n->is_contiguous, "is_contiguous"},
            {&n->is_cpu, "is_cpu"},
            {&n->dtype, "dtype"},
            {&n->shape, "shape"},
            {&n->data_ptr, "data_ptr"},
            {&n->qscheme, "qscheme"},
            {&n->stride, "stride"},
            {&n->q_scale, "q_scale"},
            {&n->q_zero_point, "q_zero_point"},
            {&n->scales, "q_per_channel_scales"},
            {&n->axis, "q_per_channel_axis"},
            {&n->zero_points, "q_per_channel_zero_points"},
            {&n->requires_grad, "requires_grad"},
        };
        for (const auto& entry : strings)
            if ((*entry.slot = PyUnicode_InternFromString(entry.name)) == nullptr) return nullptr;
        return n;
    }();
    return found;
}

PyObject* call(PyObject* self, PyObject* method) { return PyObject_CallMethodNoArgs(self, method); }

bool is_true_attribute(PyObject* self, PyObject* name) { return Ref(PyObject_GetAttr(self, name)).get() == Py_True; }

bool has_dtype(const Names& n, PyObject* tensor, PyObject* dtype) {
    return Ref(PyObject_GetAttr(tensor, n.dtype)).get() == dtype;
}

void* address(const Names& n, PyObject* tensor) {
    Ref pointer(call(tensor, n.data_ptr));
    return pointer ? PyLong_AsVoidPtr(pointer.get()) : nullptr;
}

bool good_scale(float scale) { return scale > 0.0f && scale <= __FLT_MAX__; }

bool good_zero_point(int64_t z, IntType type) {
    if (type == kInt32) return z >= INT32_MIN && z <= INT32_MAX;
    return type == kInt8 ? -128 <= z && z <= 127 : 0 <= z && z <= 255;
}

struct Channels {
    std::vector<float> scale, zero_point;
    int32_t int_zero_point = 0;
    const double* doubles = nullptr;  // the tensor's own, where some scale is no float32
};

bool read_per_tensor(const Names& n, PyObject* q, IntType type, Channels* c) {
    Ref scale(call(q, n.q_scale)), zero_point(call(q, n.q_zero_point));
    if (!scale || !zero_point) return false;
    const auto s = static_cast<float>(PyFloat_AsDouble(scale.get()));
    const int64_t z = PyLong_AsLongLong(zero_point.get());
    if (PyErr_Occurred() != nullptr || !good_scale(s) || !good_zero_point(z, type)) return false;
    c->scale.assign(1, s);
    c->zero_point.assign(1, static_cast<float>(z));
    c->int_zero_point = static_cast<int32_t>(z);
    return true;
}

// scale and zero_point must outlive the use of c->doubles.
bool read_per_channel(const Names& n, PyObject* scale, PyObject* zero_point, int64_t count, IntType type, Channels* c) {
    if (!has_dtype(n, scale, n.float64) || !has_dtype(n, zero_point, n.int64)) return false;
    if (PyObject_Length(scale) != count || PyObject_Length(zero_point) != count) return false;
    if (Ref(call(scale, n.is_contiguous)).get() != Py_True || Ref(call(zero_point, n.is_contiguous)).get() != Py_True)
        return false;
    const auto* s = static_cast<const double*>(address(n, scale));
    const auto* z = static_cast<const int64_t*>(address(n, zero_point));
    if (count > 0 && (s == nullptr || z == nullptr)) return false;
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

bool usable_out(const Names& n, PyObject* out, PyObject* shape) {
    if (reinterpret_cast<PyObject*>(Py_TYPE(out)) != n.tensor_type || !has_dtype(n, out, n.float32)) return false;
    if (!is_true_attribute(out, n.is_cpu) || is_true_attribute(out, n.requires_grad)) return false;
    Ref out_shape(PyObject_GetAttr(out, n.shape));
    return out_shape && PyObject_RichCompareBool(out_shape.get(), shape, Py_EQ) == 1 &&
           Ref(call(out, n.is_contiguous)).get() == Py_True;
}

// torch.empty(*shape), the quickest spelling; a default dtype or device other than the usual ones shows in the result.
PyObject* new_out(const Names& n, PyObject* shape) {
    PyObject* const* sizes = &PyTuple_GET_ITEM(shape, 0);
    const Py_ssize_t dims = PyTuple_GET_SIZE(shape);
    Ref fresh(dims > 0 ? PyObject_Vectorcall(n.empty, sizes, dims, nullptr) : PyObject_CallOneArg(n.empty, shape));
    if (!fresh || !has_dtype(n, fresh.get(), n.float32) || !is_true_attribute(fresh.get(), n.is_cpu)) return nullptr;
    return fresh.release();
}

bool plain_eager_mode(const Names& n) {
    Ref tracing(PyObject_CallNoArgs(n.is_tracing)), modes(PyObject_CallNoArgs(n.num_modes));
    return tracing.get() == Py_False && modes && PyLong_AsLong(modes.get()) == 0;
}

// Torch makes results of 4 and 5 dimensions channels_last by looking at strides alone, and with sizes of 1 a contiguous
// tensor may look so. Sizes above 1, or the strides of a new tensor with more than one element per image, do not.
bool contiguous_for_torch(const Names& n, PyObject* q, PyObject* shape) {
    const Py_ssize_t dims = PyTuple_GET_SIZE(shape);
    bool has_one = false;
    for (Py_ssize_t d = 0; d < dims; ++d) has_one |= PyLong_AsLongLong(PyTuple_GET_ITEM(shape, d)) == 1;
    if (!has_one) return true;
    Ref strides(call(q, n.stride));
    if (!strides || !PyTuple_Check(strides.get()) || PyTuple_GET_SIZE(strides.get()) != dims) return false;
    int64_t step = 1;
    for (Py_ssize_t d = dims - 1; d >= 0; --d) {
        if (d == 0 && step == 1) return false;
        if (PyLong_AsLongLong(PyTuple_GET_ITEM(strides.get(), d)) != step) return false;
        step *= PyLong_AsLongLong(PyTuple_GET_ITEM(shape, d));
    }
    return true;
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

// A new reference to the result, or null: not the plain case, or a Python error is set.
PyObject* try_direct(const Names& n, PyObject* q, PyObject* out) {
    if (reinterpret_cast<PyObject*>(Py_TYPE(q)) != n.tensor_type || !is_true_attribute(q, n.is_cpu) ||
        Ref(call(q, n.is_contiguous)).get() != Py_True || !plain_eager_mode(n))
        return nullptr;
    Ref dtype(PyObject_GetAttr(q, n.dtype)), shape(PyObject_GetAttr(q, n.shape)), scheme(call(q, n.qscheme));
    if (!dtype || !shape || !scheme || !PyTuple_Check(shape.get())) return nullptr;
    int type = 0;
    while (type < 3 && n.dtypes[type] != dtype.get()) ++type;
    if (type == 3) return nullptr;
    const auto int_type = static_cast<IntType>(type);
    const int int_bytes = int_type == kInt32 ? 4 : 1;
    const Py_ssize_t dims = PyTuple_GET_SIZE(shape.get());
    int64_t sizes[3] = {1, 1, 1};  // before the channel axis, the axis, after it
    int64_t axis = -1;
    const bool per_channel = scheme.get() == n.per_channel;
    if (!per_channel && scheme.get() != n.per_tensor) return nullptr;
    if (per_channel) axis = PyLong_AsLongLong(Ref(call(q, n.axis)).get());
    int64_t numel = 1;
    for (Py_ssize_t d = 0; d < dims; ++d) {
        const int64_t size = PyLong_AsLongLong(PyTuple_GET_ITEM(shape.get(), d));
        sizes[d < axis ? 0 : d == axis ? 1 : 2] *= size;
        numel *= size;
    }
    if (numel == 0 || numel * 4 > kMaxBytes || (dims >= 4 && !contiguous_for_torch(n, q, shape.get()))) return nullptr;

    Channels channels;
    Ref scale(per_channel ? call(q, n.scales) : nullptr), zero_point(per_channel ? call(q, n.zero_points) : nullptr);
    if (per_channel && (!scale || !zero_point || axis < 0 || axis >= dims)) return nullptr;
    const bool read = per_channel ? read_per_channel(n, scale.get(), zero_point.get(), sizes[1], int_type, &channels)
                                  : read_per_tensor(n, q, int_type, &channels);
    if (!read) return nullptr;
    const bool fresh = out == Py_None;
    if (!fresh && !usable_out(n, out, shape.get())) return nullptr;
    Ref result(fresh ? new_out(n, shape.get()) : Py_NewRef(out));
    if (!result) return nullptr;
    const auto* src = static_cast<const char*>(address(n, q));
    void* target = address(n, result.get());
    const auto* dst = static_cast<const char*>(target);
    if (src == nullptr || dst == nullptr || (src < dst + numel * 4 && dst < src + numel * int_bytes)) return nullptr;
    const void* scale_data =
        channels.doubles != nullptr ? static_cast<const void*>(channels.doubles) : channels.scale.data();
    const void* zero_data = channels.zero_point.data();
    Formula formula = channels.doubles != nullptr ? kDouble : kSubFloat;
    if (!per_channel && int_type == kInt32) {
        formula = kSubInt32;
        zero_data = &channels.int_zero_point;
    }
    if (sizes[0] == 1)
        run_rows(
            {src, static_cast<float*>(target), sizes[1], sizes[2], sizes[2], sizes[2], 1, scale_data, zero_data, false},
            int_type, formula);
    else
        run_on_threads(StridedDequantizer({src,
                                           int_type,
                                           int_bytes * 8,
                                           target,
                                           kFloat32,
                                           {sizes[0], sizes[1], sizes[2]},
                                           {sizes[1] * sizes[2], sizes[2], 1},
                                           {sizes[1] * sizes[2], sizes[2], 1},
                                           1,
                                           formula,
                                           scale_data,
                                           zero_data}));
    return result.release();
}

PyObject* dequantize_direct(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
    const Names* n = names();
    if (n == nullptr || count != 2) {
        PyErr_Clear();
        Py_RETURN_NONE;
    }
    PyObject* result = try_direct(*n, arguments[0], arguments[1]);
    if (result != nullptr) return result;
    if (getenv("QDBG")) PyErr_Print();
    PyErr_Clear();  // the operators meet the same trouble and say what it is
    Py_RETURN_NONE;
}

PyMethodDef method = {"dequantize_direct",
                      reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(dequantize_direct)), METH_FASTCALL,
                      "dequantize_direct(q, out) -> Tensor, or None where the operators must decide"};

}  // namespace

void add_direct_entry(_object* module) {
    Ref function(PyCFunction_New(&method, nullptr));
    if (function) PyObject_SetAttrString(module, "dequantize_direct", function.get());
}

}  // namespace qdeq
