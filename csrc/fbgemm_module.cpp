// Module qdeq._fbgemm: functions that read fbgemm's packed weights where they lie. Only for the torch that it was built
// with: it reads fbgemm's C++ objects by their layout. Plain functions and not operators, since no operator on a
// ScriptObject can be traced anyway, and the dispatcher costs more than a small weight. Checks, allocation and threads
// are here; packed_weight.cpp knows the classes, packed/ the layouts and the arithmetic.
#include <ATen/Functions.h>
#include <ATen/native/quantized/cpu/fbgemm_utils.h>
#include <torch/csrc/jit/api/object.h>
#include <torch/csrc/jit/python/pybind_utils.h>
#include <torch/csrc/stable/c/shim.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels/kernels.h"
#include "memory.h"
#include "packed_weight.h"

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

// ---- threads and kernels ----------------------------------------------------------------------------------------

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

const KernelSet& kernels_named(std::string_view name) {
    for (int i = 0; i < num_kernel_sets(); ++i) {
        if (kernel_set(i).name == name) return kernel_set(i);
    }
    TORCH_CHECK(false, "qdeq: no kernels named ", name, " here");
}

// ---- results ----------------------------------------------------------------------------------------------------

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
           out.sizes() == at::IntArrayRef(weight.sizes) && !out.requires_grad() && !out.is_neg() &&
           !out.unsafeGetTensorImpl()->is_python_dispatch() && !may_overlap_itself(out);
}

packing::OutType out_type(at::ScalarType dtype) {
    if (dtype == at::kFloat) return packing::OutType::kFloat32;
    if (dtype == at::kBFloat16) return packing::OutType::kBFloat16;
    TORCH_CHECK(dtype == at::kHalf, "qdeq: dtype must be float32, bfloat16 or float16");
    return packing::OutType::kFloat16;
}

bool good_scales(const PackedWeight& weight) {
    const int64_t count = weight.num_scales();
    const float* scale = weight.scale->data();
    int bad = 0;  // no early end: the compiler then takes many at a time
    for (int64_t i = 0; i < count; ++i) bad |= !(scale[i] > 0.0f) | !(scale[i] <= std::numeric_limits<float>::max());
    return bad == 0;
}

void write_floats(const PackedWeight& weight, const at::Tensor& out, const KernelSet& kernels) {
    const bool stream = larger_than_caches(static_cast<int64_t>(out.nbytes()));
    const packing::OutType type = out_type(out.scalar_type());
    if (weight.table) {
        packing::embedding_to_float(*weight.table, kernels, stream, parallel_for, out.mutable_data_ptr(), type,
                                    out.stride(0), out.stride(1));
        return;
    }
    const auto count = weight.num_scales();
    const std::vector<float> zero_point(weight.zero_point->begin(), weight.zero_point->begin() + count);
    const packing::Qparams qparams{weight.scale->data(), zero_point.data(), weight.per_channel};
    packing::to_float(weight.matrix, qparams, target_of(weight, out.strides()), kernels, stream, parallel_for,
                      out.mutable_data_ptr(), type);
}

// ---- the functions ----------------------------------------------------------------------------------------------

using Layout = std::tuple<std::string, std::vector<int64_t>, std::vector<int64_t>, bool>;

// Name of the packing (empty: cannot be read in place), shape, strides of a fresh result, per channel.
Layout layout(const ScriptObject& object) {
    auto weight = describe(object);
    if (!weight) return {"", {}, {}, false};
    return {weight->format, weight->sizes, weight->strides, weight->per_channel};
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

// What the caller finds instead of a result, and words.
constexpr const char* kNotInPlace = "not in place";
constexpr const char* kDirectConv = "direct";
constexpr const char* kBadScale = "bad scale";
constexpr const char* kBadOut = "bad out";

template <typename F>
void without_gil(const F& f) {
    const py::gil_scoped_release others_may_run;
    f();
}

// `out`, or a fresh tensor where that is None; or one of the words above.
py::object dequantize(const ScriptObject& object, const py::object& out, at::ScalarType dtype, std::string_view kernel,
                      bool allow_bad_scales) {
    const auto weight = describe(object);
    if (!weight) return py::str(kNotInPlace);
    if (std::string_view(weight->format) == kDirectConv) return py::str(kDirectConv);
    if (!allow_bad_scales && !good_scales(*weight)) return py::str(kBadScale);
    const KernelSet& kernels = kernels_named(kernel);
    if (!out.is_none()) {
        const auto given = out.cast<at::Tensor>();
        if (!out_fits(*weight, given, dtype)) return py::str(kBadOut);
        without_gil([&] { write_floats(*weight, given, kernels); });
        return out;
    }
    at::Tensor fresh;
    without_gil([&] {
        fresh = at::empty_strided(weight->sizes, weight->strides, dtype);
        advise_huge_pages(fresh.mutable_data_ptr(), static_cast<int64_t>(fresh.nbytes()));
        write_floats(*weight, fresh, kernels);
    });
    return py::cast(fresh);
}

at::Tensor int_repr(const ScriptObject& object, std::string_view kernel) {
    const auto weight = describe(object);
    TORCH_CHECK(weight && !weight->table, "qdeq: this packed weight's integers cannot be read in place");
    at::Tensor out = at::empty_strided(weight->sizes, weight->strides, at::kChar);
    packing::to_int8(weight->matrix, target_of(*weight, out.strides()), kernels_named(kernel), parallel_for,
                     out.mutable_data_ptr<int8_t>());
    return out;
}

// For the tests: a linear weight packed with the blocking of another CPU, by fbgemm's own code, told its block sizes.
py::object linear_packed_for_test(const at::Tensor& weight, int64_t block_cols, int64_t block_rows) {
    static std::list<fbgemm::BlockingFactors> factors;  // the packed matrix keeps a pointer
    auto& f = factors.emplace_back();
    f.MR = f.NR = f.NR_MIN = f.MCB = 8;
    f.ROW_INTERLEAVE = 4;
    f.KCB = static_cast<int>(block_cols);
    f.NCB = static_cast<int>(block_rows);
    const auto rows = static_cast<int32_t>(weight.size(0)), cols = static_cast<int32_t>(weight.size(1));
    auto matrix = std::make_unique<fbgemm::PackBMatrix<int8_t>>(
        fbgemm::matrix_op_t::Transpose, cols, rows, weight.contiguous().const_data_ptr<int8_t>(), cols, nullptr, 1, &f);
    c10::intrusive_ptr<LinearPackedParamsBase> packed = c10::make_intrusive<PackedLinearWeight>(
        std::move(matrix), std::nullopt, std::vector<int32_t>{}, std::vector<float>{0.25f}, std::vector<int32_t>{3},
        c10::kPerTensorAffine);
    return torch::jit::toPyObject(c10::IValue(std::move(packed)));
}

}  // namespace
}  // namespace qdeq

PYBIND11_MODULE(_fbgemm, m) {
    m.doc() = "qdeq's readers of fbgemm's packed weights";
    m.attr("built_with_torch") = QDEQ_BUILT_WITH_TORCH;
    m.def("layout", &qdeq::layout);
    m.def("qparams", &qdeq::qparams);
    m.def("bias", &qdeq::bias);
    m.def("dequantize", &qdeq::dequantize);
    m.def("int_repr", &qdeq::int_repr);
    m.def("linear_packed_for_test", &qdeq::linear_packed_for_test);
}
