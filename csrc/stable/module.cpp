// pybind11 module qdeq._C: facts about this build and the choice of kernels. The operators are registered in ops.cpp
// when it loads.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "memory.h"

PYBIND11_MODULE(_C, m) {
    m.doc() = "qdeq's kernels and operators on torch's stable ABI";
    m.attr("built_with_torch") = QDEQ_BUILT_WITH_TORCH;
    m.attr("compiler") = __VERSION__;
    m.def("kernels", [] {
        std::vector<std::string> names;
        for (int i = 0; i < qdeq::num_kernel_sets(); ++i) names.emplace_back(qdeq::kernel_set(i).name);
        return names;
    });
    m.def("current_kernel", [] { return std::string(qdeq::current_kernels().name); });
    m.def("force_kernel",
          [](const std::optional<std::string>& name) { return qdeq::force_kernels(name ? name->c_str() : nullptr); });
    m.def("advise_huge_pages",
          [](uintptr_t data, int64_t bytes) { qdeq::advise_huge_pages(reinterpret_cast<void*>(data), bytes); });
    m.def("last_level_cache_bytes", [] { return qdeq::last_level_cache_bytes(); });
}
