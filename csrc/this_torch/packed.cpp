// The functions that read fbgemm's packed weights where they lie. Plain functions and not operators, since no operator
// on a ScriptObject can be traced anyway, and the dispatcher costs more than a small weight. packed_weight.cpp knows
// the classes, packed_read.cpp checks, csrc/packing the layouts and the arithmetic.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Type.h>
#include <torch/csrc/jit/api/object.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <typeinfo>
#include <vector>

#include "this_torch/batch.h"
#include "this_torch/borrowed.h"
#include "this_torch/module.h"
#include "this_torch/packed_read.h"
#include "this_torch/packed_weight.h"

namespace qdeq {
namespace {

using ScriptObject = torch::jit::Object;

// The C++ object behind a ScriptObject; empty for one that a TorchScript class made.
c10::intrusive_ptr<Packed> packed_of(const ScriptObject& object) {
    const auto value = object._ivalue();
    if (value->slots().size() != 1 || !value->getSlot(0).isCapsule()) return {};
    return value->getSlot(0).toCapsule();
}

std::optional<PackedWeight> describe(const ScriptObject& object) {
    const auto packed = packed_of(object);
    return packed ? qdeq::describe(*packed) : std::nullopt;
}

using Layout = std::tuple<std::string, std::vector<int64_t>, std::vector<int64_t>, bool>;

// Name of the packing (empty: cannot be read in place), shape, strides of a fresh result, per channel.
Layout layout(const ScriptObject& object) {
    auto weight = describe(object);
    if (!weight) return {"", {}, {}, false};
    return {weight->format, weight->sizes, weight->strides, weight->per_channel};
}

// The C++ class of a packed weight, such as PackedConvWeightsOnednn<2>; empty for one of another kind.
std::string packed_by(const ScriptObject& object) {
    const auto packed = packed_of(object);
    if (!packed) return {};
    const Packed& held = *packed;
    return c10::demangle(typeid(held).name());
}

// float64 scales and int64 zero points, 0-d or 1-d; copies.
std::tuple<at::Tensor, at::Tensor> qparams(const ScriptObject& object) {
    const auto weight = describe(object);
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

// Whether the object is fbgemm's, and its live bias.
std::tuple<bool, std::optional<at::Tensor>> bias(const ScriptObject& object) {
    const auto packed = packed_of(object);
    std::optional<at::Tensor> found;
    const bool known = packed && packed_bias(*packed, &found);
    return {known, found};
}

template <typename F>
void without_gil(const F& f) {
    const py::gil_scoped_release others_may_run;
    f();
}

// `out`, or a fresh tensor where that is None; or one of the words of packed_read.h.
py::object dequantize(const ScriptObject& object, const py::object& out, at::ScalarType dtype, bool allow_bad_scales) {
    const auto weight = describe(object);
    const char* obstacle = obstacle_to(weight, allow_bad_scales);
    if (*obstacle != 0) return py::str(obstacle);
    if (!out.is_none()) {
        const auto given = out.cast<at::Tensor>();
        if (!out_fits(*weight, given, dtype)) return py::str(kBadOut);
        without_gil([&] { write_floats(*weight, given); });
        return out;
    }
    at::Tensor fresh;
    without_gil([&] {
        fresh = at::empty_strided(weight->sizes, weight->strides, dtype);
        core().advise_huge_pages(fresh.mutable_data_ptr(), static_cast<int64_t>(fresh.nbytes()));
        write_floats(*weight, fresh);
    });
    return py::cast(fresh);
}

at::Tensor int_repr(const ScriptObject& object) {
    const auto weight = describe(object);
    TORCH_CHECK(weight && !weight->table, "qdeq: this packed weight's integers cannot be read in place");
    at::Tensor out = at::empty_strided(weight->sizes, weight->strides, at::kChar);
    packing::to_int8(weight->matrix, target_of(*weight, out.strides()), core().current_kernels(), core().parallel_for,
                     out.mutable_data_ptr<int8_t>());
    return out;
}

// For each object whether it was read into its tensor, and a copy of its bias (batch.h).
std::vector<std::tuple<bool, std::optional<at::Tensor>>> read_all_objects(const std::vector<ScriptObject>& objects,
                                                                          const std::vector<at::Tensor>& outs,
                                                                          bool allow_bad_scales) {
    std::vector<c10::intrusive_ptr<Packed>> packed;
    for (const auto& object : objects) packed.push_back(packed_of(object));
    std::vector<std::tuple<bool, std::optional<at::Tensor>>> results;
    without_gil([&] { results = read_all(packed, outs, allow_bad_scales); });
    return results;
}

}  // namespace

bool add_packed(PyObject* module) try {
    auto m = py::reinterpret_borrow<py::module_>(module);
    m.def("layout", &layout);
    m.def("packed_by", &packed_by);
    m.def("qparams", &qparams);
    m.def("bias", &bias);
    m.def("dequantize", &dequantize);
    m.def("int_repr", &int_repr);
    m.def("read_all", &read_all_objects);
    return true;
} catch (py::error_already_set& error) {
    error.restore();
    return false;
}

}  // namespace qdeq
