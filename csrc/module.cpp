// pybind11 module qdeq._C: facts about this build. The operators are registered in ops.cpp when it loads.
#include <pybind11/pybind11.h>

PYBIND11_MODULE(_C, m) {
    m.doc() = "qdeq's kernels and operators on torch's stable ABI";
    m.attr("built_with_torch") = QDEQ_BUILT_WITH_TORCH;
    m.attr("compiler") = __VERSION__;
}
