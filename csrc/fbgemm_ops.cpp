// pybind11 module qdeq._fbgemm: readers of fbgemm's packed weights; only for the torch it was built with.
#include <pybind11/pybind11.h>

PYBIND11_MODULE(_fbgemm, m) { m.attr("built_with_torch") = QDEQ_BUILT_WITH_TORCH; }
