#include "this_torch/packed_read.h"

#include <string_view>
#include <vector>

#include "common/channels.h"
#include "common/strides.h"
#include "this_torch/borrowed.h"

namespace qdeq {
namespace {

OutType out_type(at::ScalarType dtype) {
    if (dtype == at::kFloat) return kFloat32;
    if (dtype == at::kBFloat16) return kBFloat16;
    TORCH_CHECK(dtype == at::kHalf, "qdeq: dtype must be float32, bfloat16 or float16");
    return kFloat16;
}

}  // namespace

const char* obstacle_to(const std::optional<PackedWeight>& weight, bool allow_bad_scales) {
    if (!weight) return kNotInPlace;
    if (std::string_view(weight->format) == kDirectConv) return kDirectConv;
    return allow_bad_scales || good_scales(weight->scale->data(), weight->num_scales()) ? kNothing : kBadScale;
}

bool out_fits(const PackedWeight& weight, const at::Tensor& out, at::ScalarType dtype) {
    return out.layout() == at::kStrided && out.device().is_cpu() && !out.is_quantized() && out.scalar_type() == dtype &&
           out.sizes() == at::IntArrayRef(weight.sizes) && !out.requires_grad() && !out.is_neg() &&
           !out.unsafeGetTensorImpl()->is_python_dispatch() && !may_overlap_itself(out.sizes(), out.strides());
}

void write_floats(const PackedWeight& weight, const at::Tensor& out) {
    const KernelSet& kernels = core().current_kernels();
    const ParallelFor parallel_for = core().parallel_for;
    const bool stream = core().larger_than_caches(static_cast<int64_t>(out.nbytes()));
    const OutType type = out_type(out.scalar_type());
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

}  // namespace qdeq
