// The parts of module qdeq._torch. Each adds its functions: false, with Python's error set, where it could not.
#pragma once

#include <Python.h>

namespace qdeq {

bool add_small(PyObject* module);
bool add_packed(PyObject* module);  // only with fbgemm

}  // namespace qdeq
