// Stand-in for asmjit, which fbgemm's headers include and torch does not ship. fbgemm names three register types in
// `using` declarations and asks for the version; nothing here is ever called or laid out.
#pragma once

#define ASMJIT_LIBRARY_MAKE_VERSION(major, minor, patch) (((major) << 16) | ((minor) << 8) | (patch))
#define ASMJIT_LIBRARY_VERSION ASMJIT_LIBRARY_MAKE_VERSION(1, 16, 0)
