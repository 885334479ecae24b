// See core.h.
#pragma once

#include <asmjit/core.h>

namespace asmjit::x86 {
class Xmm;
class Ymm;
class Zmm;
}  // namespace asmjit::x86
