// What this machine's memory can do: loops that only move bytes. Built by benchmarks/harness.py, never shipped.
#include <sys/mman.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstring>

#include "common/memory.h"
#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace {

using torch::stable::Tensor;

constexpr int64_t kGrain = 64 << 10;  // bytes of output

// Writes 64 bytes past the caches; dst is aligned to 64.
#if defined(__x86_64__)
void put_line(char* dst, __m128i a, __m128i b, __m128i c, __m128i d) {
    auto* line = reinterpret_cast<__m128i*>(dst);
    _mm_stream_si128(line, a);
    _mm_stream_si128(line + 1, b);
    _mm_stream_si128(line + 2, c);
    _mm_stream_si128(line + 3, d);
}
__m128i load(const char* src) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(src)); }
void set_lines(char* dst, int64_t lines) {
    const __m128i value = _mm_set1_epi8(1);
    for (int64_t i = 0; i < lines; ++i) put_line(dst + 64 * i, value, value, value, value);
    _mm_sfence();
}
template <int kBytes>  // of the source for each 64 of the result; no arithmetic
void widen_lines(const char* src, char* dst, int64_t lines) {
    for (int64_t i = 0; i < lines; ++i) {
        __m128i x = _mm_setzero_si128(), y;
        std::memcpy(&x, src + kBytes * i, kBytes < 16 ? kBytes : 16);
        std::memcpy(&y, src + kBytes * i + (kBytes < 32 ? 0 : 16), kBytes < 16 ? kBytes : 16);
        put_line(dst + 64 * i, x, y, x, y);
    }
    _mm_sfence();
}
void copy_lines(const char* src, char* dst, int64_t lines) {
    for (int64_t i = 0; i < lines; ++i) {
        const char* s = src + 64 * i;
        put_line(dst + 64 * i, load(s), load(s + 16), load(s + 32), load(s + 48));
    }
    _mm_sfence();
}
#else
void set_lines(char* dst, int64_t lines) { std::memset(dst, 1, 64 * lines); }
template <int kBytes>
void widen_lines(const char* src, char* dst, int64_t lines) {
    for (int64_t i = 0; i < lines; ++i)
        for (int part = 0; part < 64; part += kBytes) std::memcpy(dst + 64 * i + part, src + kBytes * i, kBytes);
}
void copy_lines(const char* src, char* dst, int64_t lines) { std::memcpy(dst, src, 64 * lines); }
#endif

template <typename F>
void over_lines(const Tensor& out, const F& f) {
    const int64_t bytes = out.numel() * static_cast<int64_t>(out.element_size());
    STD_TORCH_CHECK(out.is_contiguous() && bytes % 64 == 0 && reinterpret_cast<uintptr_t>(out.data_ptr()) % 64 == 0,
                    "qdeq_limits: out must be contiguous whole cache lines");
    torch::stable::parallel_for(0, bytes / 64, kGrain / 64, f);
}

// Reads all of src and writes all of out. A line of out takes 4 bytes (2-bit values), 8, 16 (8-bit) or 32 (8-bit values
// to 16-bit results).
void bare_loop(Tensor src, Tensor out) {
    const int64_t bytes = src.numel() * static_cast<int64_t>(src.element_size());
    const int64_t lines = out.numel() * static_cast<int64_t>(out.element_size()) / 64;
    const auto* from = static_cast<const char*>(src.data_ptr());
    auto* to = static_cast<char*>(out.data_ptr());
    const auto run = [&]<int kBytes>() {
        STD_TORCH_CHECK(src.is_contiguous() && bytes == kBytes * lines, "qdeq_limits: src is not of a fitting size");
        over_lines(out, [=](int64_t begin, int64_t end) {
            widen_lines<kBytes>(from + kBytes * begin, to + 64 * begin, end - begin);
        });
    };
    switch (lines == 0 ? 0 : bytes / lines) {
        case 4:
            return run.template operator()<4>();
        case 8:
            return run.template operator()<8>();
        case 32:
            return run.template operator()<32>();
        default:
            return run.template operator()<16>();
    }
}

void copy_all(Tensor src, Tensor out) {
    const auto* from = static_cast<const char*>(src.data_ptr());
    auto* to = static_cast<char*>(out.data_ptr());
    over_lines(out, [=](int64_t begin, int64_t end) { copy_lines(from + 64 * begin, to + 64 * begin, end - begin); });
}

void set_all(Tensor out) {
    auto* to = static_cast<char*>(out.data_ptr());
    over_lines(out, [=](int64_t begin, int64_t end) { set_lines(to + 64 * begin, end - begin); });
}

// Maps `bytes` anew, asks for huge pages, sets them once, gives them back.
void fresh_memset(int64_t bytes) {
    void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    STD_TORCH_CHECK(data != MAP_FAILED, "qdeq_limits: out of memory");
    qdeq::advise_huge_pages(data, bytes);
    auto* to = static_cast<char*>(data);
    torch::stable::parallel_for(0, bytes / 64, kGrain / 64,
                                [=](int64_t begin, int64_t end) { set_lines(to + 64 * begin, end - begin); });
    munmap(data, bytes);
}

}  // namespace

STABLE_TORCH_LIBRARY(qdeq_limits, m) {
    m.def("bare_loop(Tensor src, Tensor(a!) out) -> ()");
    m.def("copy(Tensor src, Tensor(a!) out) -> ()");
    m.def("memset(Tensor(a!) out) -> ()");
    m.def("fresh_memset(int bytes) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(qdeq_limits, CPU, m) {
    m.impl("bare_loop", TORCH_BOX(&bare_loop));
    m.impl("copy", TORCH_BOX(&copy_all));
    m.impl("memset", TORCH_BOX(&set_all));
}

STABLE_TORCH_LIBRARY_IMPL(qdeq_limits, CompositeExplicitAutograd, m) {
    m.impl("fresh_memset", TORCH_BOX(&fresh_memset));
}
