// Module qdeq._torch: what reads C++ objects of torch and fbgemm by their layout, so that it works only in the torch
// that it was built with. It may be missing: everything then works without it, slower, with the same bits.
#include "this_torch/module.h"

#include <string_view>

#include "this_torch/borrowed.h"

namespace qdeq {
namespace {

const Core* borrowed = nullptr;

bool borrow_core() {
    borrowed = static_cast<const Core*>(PyCapsule_Import(kCoreName, 0));
    if (borrowed == nullptr) return false;
    if (borrowed->built_for == std::string_view(kBuiltFor) && borrowed->size == sizeof(Core)) return true;
    PyErr_Format(PyExc_ImportError, "it is of another build, for torch %s, and qdeq._C for torch %s", kBuiltFor,
                 borrowed->built_for);
    return false;
}

#if defined(QDEQ_WITH_FBGEMM)
constexpr bool kReadsPackedWeights = true;
bool add_functions(PyObject* module) { return add_small(module) && add_packed(module); }
#else
constexpr bool kReadsPackedWeights = false;
bool add_functions(PyObject* module) { return add_small(module); }
#endif

PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    "qdeq._torch",
    "What qdeq has for one torch only: a short way in for small tensors, packed weights read in place.",
    -1,
    nullptr,
    nullptr,
    nullptr,
    nullptr,
    nullptr};

}  // namespace

const Core& core() { return *borrowed; }

}  // namespace qdeq

PyMODINIT_FUNC PyInit__torch() {
    if (!qdeq::borrow_core()) return nullptr;
    PyObject* module = PyModule_Create(&qdeq::definition);
    if (module == nullptr) return nullptr;
    PyObject* reads_packed = qdeq::kReadsPackedWeights ? Py_True : Py_False;
    if (qdeq::add_functions(module) && PyModule_AddObjectRef(module, "reads_packed_weights", reads_packed) == 0)
        return module;
    Py_DECREF(module);
    return nullptr;
}
