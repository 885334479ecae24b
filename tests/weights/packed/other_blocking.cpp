// A linear weight packed with the blocking of another CPU, by fbgemm's own code, told its block sizes.
#include <ATen/native/quantized/cpu/fbgemm_utils.h>
#include <torch/library.h>

#include <list>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

namespace {

c10::intrusive_ptr<LinearPackedParamsBase> linear_packed(const at::Tensor& weight, int64_t block_cols,
                                                         int64_t block_rows) {
    static std::list<fbgemm::BlockingFactors> factors;  // the packed matrix keeps a pointer
    auto& f = factors.emplace_back();
    f.MR = f.NR = f.NR_MIN = f.MCB = 8;
    f.ROW_INTERLEAVE = 4;
    f.KCB = static_cast<int>(block_cols);
    f.NCB = static_cast<int>(block_rows);
    const auto rows = static_cast<int32_t>(weight.size(0)), cols = static_cast<int32_t>(weight.size(1));
    auto matrix = std::make_unique<fbgemm::PackBMatrix<int8_t>>(
        fbgemm::matrix_op_t::Transpose, cols, rows, weight.contiguous().const_data_ptr<int8_t>(), cols, nullptr, 1, &f);
    return c10::make_intrusive<PackedLinearWeight>(std::move(matrix), std::nullopt, std::vector<int32_t>{},
                                                   std::vector<float>{0.25f}, std::vector<int32_t>{3},
                                                   c10::kPerTensorAffine);
}

}  // namespace

TORCH_LIBRARY(qdeq_test, m) {
    m.def(
        "linear_packed(Tensor weight, int block_cols, int block_rows) -> "
        "__torch__.torch.classes.quantized.LinearPackedParamsBase");
    m.impl("linear_packed", c10::DispatchKey::CompositeExplicitAutograd, TORCH_FN(linear_packed));
}
