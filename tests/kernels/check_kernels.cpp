// Every kernel set of this machine against the scalar one, byte for byte, without torch: rows, conversions, byte
// shuffles and strided walks, with guard bytes around what may be written. Also runs under an emulator.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "kernels/grid.h"
#include "kernels/kernels.h"
#include "kernels/strided.h"

using namespace qdeq;

namespace {

std::mt19937_64 rng;
int64_t draw(int64_t low, int64_t high) { return low + static_cast<int64_t>(rng() % (high - low + 1)); }
double unit() { return static_cast<double>(rng() >> 11) * 0x1p-53; }

void require_same(const void* got, const void* want, size_t bytes, const KernelSet& set, const char* what, int64_t n) {
    if (std::memcmp(got, want, bytes) == 0) return;
    std::printf("%s: %s differs from scalar, %lld elements\n", set.name, what, static_cast<long long>(n));
    std::exit(1);
}

std::vector<uint8_t> random_bytes(int64_t count) {
    std::vector<uint8_t> bytes(count);
    for (auto& byte : bytes) byte = static_cast<uint8_t>(rng());
    return bytes;
}

void check_rows(const KernelSet& set, int type, int formula, bool per_element, int64_t rows, int64_t cols,
                bool stream) {
    const RowsFn tested = (per_element ? set.per_element : set.per_row)[type][formula];
    const RowsFn definition = (per_element ? kScalarKernels.per_element : kScalarKernels.per_row)[type][formula];
    if (definition == nullptr) return;
    const int64_t offset = draw(0, 17), stride = cols + draw(0, 5);
    const auto src = random_bytes((rows * stride + 1) * 4);
    const int64_t params = per_element ? cols : rows;
    std::vector<double> scale(params + 1);
    std::vector<int32_t> zero(params + 1);
    for (int64_t i = 0; i <= params; ++i) {
        const double s = std::ldexp(unit() + 0.5, static_cast<int>(draw(-140, 20)));
        const auto narrow = static_cast<float>(s);
        const auto z = static_cast<float>(draw(-200, 200));
        if (formula == kDouble)
            scale[i] = s;
        else
            std::memcpy(reinterpret_cast<float*>(scale.data()) + i, &narrow, 4);
        zero[i] = static_cast<int32_t>(rng());
        if (formula != kSubInt32) std::memcpy(&zero[i], &z, 4);
    }
    std::vector<float> got(rows * stride + 40, 7.0f), want(got);
    RowBlock b{src.data(), want.data() + offset, rows, cols, stride, stride, 1, scale.data(), zero.data(), false};
    definition(b);
    b.dst = got.data() + offset;
    b.stream = stream;
    tested(b);
    set.fence();
    require_same(got.data(), want.data(), got.size() * 4, set, "rows", cols);
}

void check_words(const KernelSet& set) {
    const int64_t rows = draw(1, 8) * 8, cols = draw(1, 70), gap = draw(0, 9);
    const auto words = random_bytes(rows * cols * 4);
    std::vector<uint8_t> got(rows * (cols * 4 + gap), 9), want(got);
    set.transpose_words(words.data(), rows * 4, got.data(), cols * 4 + gap, rows, cols, words.data());
    kScalarKernels.transpose_words(words.data(), rows * 4, want.data(), cols * 4 + gap, rows, cols, words.data());
    require_same(got.data(), want.data(), got.size(), set, "transpose_words", rows * cols);
}

void check_bytes(const KernelSet& set, int64_t n) {
    const auto packed = random_bytes(n + 1);
    std::vector<uint8_t> got(n + 8, 9), want(got);
    set.unpack_4bit(packed.data(), got.data(), n);
    kScalarKernels.unpack_4bit(packed.data(), want.data(), n);
    require_same(got.data(), want.data(), got.size(), set, "unpack_4bit", n);
    set.unpack_2bit(packed.data(), got.data(), n);
    kScalarKernels.unpack_2bit(packed.data(), want.data(), n);
    require_same(got.data(), want.data(), got.size(), set, "unpack_2bit", n);
    const int64_t rows = draw(1, 70), cols = draw(1, 70);
    const auto square = random_bytes(rows * cols);
    std::vector<uint8_t> turned(rows * cols), turned_want(rows * cols);
    set.transpose_bytes(square.data(), rows, turned.data(), cols, rows, cols);
    kScalarKernels.transpose_bytes(square.data(), rows, turned_want.data(), cols, rows, cols);
    require_same(turned.data(), turned_want.data(), turned.size(), set, "transpose_bytes", rows * cols);
    check_words(set);
}

void check_halves(const KernelSet& set, int64_t n, bool stream) {
    std::vector<float> src(n);
    for (auto& x : src) {
        uint32_t bits = static_cast<uint32_t>(rng());
        if (draw(0, 1) == 0)
            bits = (bits & 0x80FFFFFFu) | static_cast<uint32_t>(draw(0x31, 0x48)) << 24;  // near float16
        if (draw(0, 3) == 0) bits = (bits & 0xFFFF0000u) | 0x8000u;                       // a tie for bfloat16
        if (draw(0, 3) == 0) bits = (bits & 0xFFFFE000u) | 0x1000u;                       // a tie for float16
        if ((bits & 0x7F800000u) == 0x7F800000u) bits = 0x7F800000u;  // infinity; NaN payloads are anybody's
        std::memcpy(&x, &bits, 4);
    }
    const int64_t offset = draw(0, 9);
    std::vector<uint16_t> got(n + 24, 3), want(got);
    set.to_bfloat16(src.data(), got.data() + offset, n, stream);
    set.fence();
    kScalarKernels.to_bfloat16(src.data(), want.data() + offset, n, false);
    require_same(got.data(), want.data(), got.size() * 2, set, "to_bfloat16", n);
    set.to_float16(src.data(), got.data() + offset, n, stream);
    set.fence();
    kScalarKernels.to_float16(src.data(), want.data() + offset, n, false);
    require_same(got.data(), want.data(), got.size() * 2, set, "to_float16", n);
}

std::vector<float> e4m3_values() {
    std::vector<float> values(256);
    for (int code = 0; code < 256; ++code) {
        const int exponent = (code >> 3) & 15;
        const double size = exponent == 0 ? std::ldexp(code & 7, -9) : std::ldexp(8 + (code & 7), exponent - 10);
        values[code] = static_cast<float>(code < 128 ? size : -size);
    }
    values[0x7F] = values[0xFF] = std::nanf("");
    return values;
}

// Grids of every kind of block, with scales from zero over subnormals to the largest, into rows that are aligned or
// not.
void check_grid(const KernelSet& set, int64_t cols, int out_type, int bits) {  // 0: e4m3
    const int64_t matrices = draw(1, 2), rows = draw(1, 9), block_rows = draw(1, 5);
    int64_t block_cols = draw(1, 200);
    auto values = e4m3_values();
    if (!is_e4m3(values.data())) std::exit(2);
    const bool is_e4m3 = bits == 0, halves = draw(0, 1) == 1;
    if (!is_e4m3)
        for (auto& x : values) x = static_cast<float>(draw(-128, 127)) / (halves ? 2 : draw(1, 3));
    if (is_e4m3) bits = 8;
    const int64_t row_bytes = (cols * bits + 7) / 8 + draw(0, 5);
    if (draw(0, 2) != 0) block_cols = draw(1, 12) * 8;  // begins with a byte
    const int64_t grid_rows = (rows + block_rows - 1) / block_rows, grid_cols = (cols + block_cols - 1) / block_cols;
    std::vector<float> zero(matrices * grid_rows * grid_cols + 1);
    for (auto& z : zero) z = static_cast<float>(draw(-9, 9));
    std::vector<float> scale(matrices * grid_rows * grid_cols + 1);
    for (auto& s : scale) {
        s = std::ldexp(static_cast<float>(unit() + 0.5), static_cast<int>(draw(-149, 125)));
        if (draw(0, 2) != 0) s = std::ldexp(s, -std::ilogb(s) + static_cast<int>(draw(-12, 4)));
        if (draw(0, 4) == 0) s = -s;
        if (draw(0, 9) == 0) s = 0;
    }
    const auto codes = random_bytes(matrices * rows * row_bytes);
    const int64_t size = out_type == kFloat32 ? 4 : 2, bytes = (matrices * rows * cols + 80) * size;
    std::vector<uint8_t> got(bytes, 9), want(got);
    const int64_t offset = draw(0, 33) * size;
    const bool with_zero = !is_e4m3 && draw(0, 1) == 1;
    const auto run = [&](std::vector<uint8_t>& out, const KernelSet& kernels, int64_t split, bool stream) {
        const GridDequantizer work({codes.data(), out.data() + offset, static_cast<OutType>(out_type), matrices, rows,
                                    cols, row_bytes, block_rows, block_cols, scale.data(),
                                    with_zero ? zero.data() : nullptr, bits, values.data()});
        work.run(0, split, kernels, stream);
        work.run(split, work.num_rows(), kernels, stream);
    };
    run(want, kScalarKernels, matrices * rows, false);
    run(got, set, draw(0, matrices * rows), draw(0, 1) == 1);
    require_same(got.data(), want.data(), got.size(), set, "grid", cols);
}

void check_strided(const KernelSet& set) {
    const int64_t a = draw(1, 9), b = draw(1, 40), c = draw(1, 90);
    const auto src = random_bytes(a * b * c);
    std::vector<float> scale(64), zero(64);
    for (auto& x : scale) x = static_cast<float>(unit() + 0.1);
    for (auto& x : zero) x = static_cast<float>(draw(-128, 127));
    const int64_t axis = draw(-1, 1) < 0 ? -1 : 0;
    const bool turned = draw(0, 1) == 1;
    std::vector<float> got(a * b * c, 7.0f), want(got);
    Request r{src.data(),    kInt8,         8,    want.data(), kFloat32,     {a, b, c},
              {b * c, c, 1}, {b * c, c, 1}, axis, kSubFloat,   scale.data(), zero.data()};
    if (turned) r.src_strides = {1, a, a * b};
    StridedDequantizer(r).run(0, a * b * c, kScalarKernels, false);
    r.dst = got.data();
    const int64_t split = draw(0, a * b * c);
    const StridedDequantizer work(r);
    work.run(0, split, set, true);
    work.run(split, a * b * c, set, false);
    require_same(got.data(), want.data(), got.size() * 4, set, "strided", a * b * c);
}

}  // namespace

int main(int argc, char** argv) {
    const uint64_t seed = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1;
    std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
    rng.seed(seed);
    for (int index = 0; index < num_kernel_sets(); ++index) {
        const KernelSet& set = kernel_set(index);
        for (int64_t n = 0; n < 150; ++n) {
            for (int type = 0; type < 3; ++type)
                for (int formula = 0; formula < 3; ++formula)
                    for (int flags = 0; flags < 4; ++flags)
                        check_rows(set, type, formula, (flags & 1) != 0, draw(0, 4), n, (flags & 2) != 0);
            check_bytes(set, n);
            check_halves(set, n, n % 2 == 1);
            check_strided(set);
            for (int out_type = 0; out_type < 3; ++out_type)
                for (const int bits : {0, 4, 8, static_cast<int>(draw(1, 8))})
                    check_grid(set, n % 25 == 0 ? 70 * n : n, out_type, bits);
        }
        std::printf("%s: same as scalar\n", set.name);
    }
    return 0;
}
