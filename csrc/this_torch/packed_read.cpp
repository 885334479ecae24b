#include "packed_read.h"

#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "memory.h"

namespace qdeq {
namespace {

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

}  // namespace

const char* obstacle_to(const std::optional<PackedWeight>& weight, bool allow_bad_scales) {
    if (!weight) return kNotInPlace;
    if (std::string_view(weight->format) == kDirectConv) return kDirectConv;
    return allow_bad_scales || good_scales(*weight) ? kNothing : kBadScale;
}

bool out_fits(const PackedWeight& weight, const at::Tensor& out, at::ScalarType dtype) {
    return out.layout() == at::kStrided && out.device().is_cpu() && !out.is_quantized() && out.scalar_type() == dtype &&
           out.sizes() == at::IntArrayRef(weight.sizes) && !out.requires_grad() && !out.is_neg() &&
           !out.unsafeGetTensorImpl()->is_python_dispatch() && !may_overlap_itself(out);
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

const KernelSet& kernels_named(std::string_view name) {
    for (int i = 0; i < num_kernel_sets(); ++i) {
        if (kernel_set(i).name == name) return kernel_set(i);
    }
    TORCH_CHECK(false, "qdeq: no kernels named ", name, " here");
}

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

}  // namespace qdeq
