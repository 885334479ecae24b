// Module qdeq._C on Python's limited API: facts about this build, the choice of kernels, and what qdeq._torch borrows.
// The operators are registered in ops.cpp when it loads.
// Python 3.10's, whatever the torch at hand would set: the wheel says so.
#undef Py_LIMITED_API
#define Py_LIMITED_API 0x030A0000
#include <Python.h>

#include <cstdint>

#include "common/core.h"
#include "common/memory.h"
#include "kernels/kernels.h"
#include "stable/threads.h"

namespace qdeq {
namespace {

PyObject* kernels(PyObject*, PyObject*) {
    PyObject* names = PyList_New(0);
    for (int i = 0; names != nullptr && i < num_kernel_sets(); ++i) {
        PyObject* name = PyUnicode_FromString(kernel_set(i).name);
        if (name == nullptr || PyList_Append(names, name) != 0) Py_CLEAR(names);
        Py_XDECREF(name);
    }
    return names;
}

PyObject* current_kernel(PyObject*, PyObject*) { return PyUnicode_FromString(current_kernels().name); }

PyObject* force_kernel(PyObject*, PyObject* name_or_none) {
    if (name_or_none == Py_None) return PyBool_FromLong(force_kernels(nullptr));
    const char* name = PyUnicode_AsUTF8AndSize(name_or_none, nullptr);
    return name == nullptr ? nullptr : PyBool_FromLong(force_kernels(name));
}

PyObject* cache_bytes(PyObject*, PyObject*) { return PyLong_FromLongLong(last_level_cache_bytes()); }

PyMethodDef methods[] = {
    {"kernels", kernels, METH_NOARGS, "Kernel sets that run here, fastest first."},
    {"current_kernel", current_kernel, METH_NOARGS, "The kernel set in use."},
    {"force_kernel", force_kernel, METH_O, "Use the set of that name (None: the fastest). False: there is none here."},
    {"last_level_cache_bytes", cache_bytes, METH_NOARGS, "0 where the system does not say."},
    {nullptr, nullptr, 0, nullptr}};

constexpr Core kCore = {kBuiltFor,    sizeof(Core),       current_kernels,  dequantize_on_threads,
                        parallel_for, larger_than_caches, advise_huge_pages};

int fill(PyObject* module) {
    PyObject* core = PyCapsule_New(const_cast<Core*>(&kCore), kCoreName, nullptr);
    const int failed = PyModule_AddObjectRef(module, "core", core);
    Py_XDECREF(core);
    if (failed != 0) return -1;
    if (PyModule_AddStringConstant(module, "built_with_torch", QDEQ_BUILT_WITH_TORCH) != 0) return -1;
    if (PyModule_AddStringConstant(module, "built_with_git", QDEQ_BUILT_WITH_GIT) != 0) return -1;
    return PyModule_AddStringConstant(module, "compiler", __VERSION__);
}

PyModuleDef_Slot slots[] = {{Py_mod_exec, reinterpret_cast<void*>(fill)}, {0, nullptr}};

PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                          "qdeq._C",
                          "qdeq's kernels and operators, for every Python and every torch.",
                          0,
                          methods,
                          slots,
                          nullptr,
                          nullptr,
                          nullptr};

}  // namespace
}  // namespace qdeq

PyMODINIT_FUNC PyInit__C() { return PyModuleDef_Init(&qdeq::definition); }
