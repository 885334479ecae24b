// The readers of packed weights without torch: every layout, kernel set and kind of result, against the layout's own
// index formula. Sources and results are of exactly the size that they must have, so that a sanitizer sees every step
// outside.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "packing/embedding.h"
#include "packing/emit_rows.h"

using namespace qdeq;
using namespace qdeq::packing;

namespace {

std::mt19937_64 rng;
int64_t draw(int64_t low, int64_t high) { return low + static_cast<int64_t>(rng() % (high - low + 1)); }

void on_two_threads(int64_t count, int64_t, const std::function<void(int64_t, int64_t)>& body) {
    const int64_t middle = draw(0, count);
    if (middle > 0) body(0, middle);
    if (middle < count) body(middle, count);
}

// A layout with its buffer, and where element (group, row, column) lies in it.
struct Source {
    std::vector<int8_t> bytes;
    Matrix matrix;
    int64_t groups, rows, cols, taps, channels;
    std::function<int64_t(int64_t, int64_t, int64_t)> offset;
};

template <typename M, typename Offset>
Source source(M m, int64_t bytes, int64_t groups, int64_t rows, int64_t taps, int64_t channels, Offset offset) {
    Source s{std::vector<int8_t>(static_cast<size_t>(bytes)), {}, groups, rows, taps * channels, taps, channels, {}};
    for (auto& byte : s.bytes) byte = static_cast<int8_t>(rng());
    m.data = s.bytes.data();
    s.matrix = m;
    s.offset = [m, offset](int64_t group, int64_t row, int64_t col) { return offset(m, group, row, col); };
    return s;
}

Source blocked() {
    const int64_t blockings[][2] = {{512, 8}, {512, 48}, {256, 32}, {512, 16}, {128, 24}, {64, 4}, {4, 2}};
    const auto& blocking = blockings[draw(0, 6)];
    const int64_t taps = draw(1, 9), channels = draw(1, 140);
    const Blocked m{nullptr, draw(1, 3), draw(1, 100), taps * channels, blocking[0], blocking[1]};
    return source(m, m.groups * m.group_size(), m.groups, m.rows_per_group, taps, channels,
                  [](const Blocked& b, int64_t group, int64_t row, int64_t col) { return b.offset(group, row, col); });
}

Source depthwise() {
    const Depthwise m{nullptr, draw(1, 300), draw(1, 30)};
    return source(m, (m.rows + 31) / 32 * 32 * m.padded_taps(), 1, m.rows, m.taps, 1,
                  [](const Depthwise& d, int64_t, int64_t row, int64_t tap) { return d.offset(row, tap); });
}

Source groupwise() {
    const Groupwise m{nullptr, draw(1, 9), draw(1, 9), draw(1, 4) * 4, draw(1, 9), draw(1, 4)};
    const int64_t vectors = (m.groups + m.together - 1) / m.together * m.taps * m.rows_per_group;
    return source(m, vectors * m.together * m.padded_channels(), m.groups, m.rows_per_group, m.taps, m.channels,
                  [](const Groupwise& g, int64_t group, int64_t row, int64_t col) {
                      return g.offset(group, row, col / g.channels, col % g.channels);
                  });
}

Source direct() {
    const Direct m{nullptr, draw(1, 5) * 8, draw(1, 5) * 8, draw(1, 12)};
    return source(m, m.rows * m.cols(), 1, m.rows, m.taps, m.channels,
                  [](const Direct& d, int64_t, int64_t row, int64_t col) {
                      return d.offset(row, col / d.channels, col % d.channels);
                  });
}

void fail(const KernelSet& set, const Source& s, const char* what) {
    std::printf("%s: %s of layout %zu differs: groups %lld, rows %lld, taps %lld, channels %lld\n", set.name, what,
                s.matrix.index(), static_cast<long long>(s.groups), static_cast<long long>(s.rows),
                static_cast<long long>(s.taps), static_cast<long long>(s.channels));
    std::exit(1);
}

// A dense result in the matrix's own order, in that of a contiguous convolution weight, or by a list of places.
Target target(const Source& s, Target::Columns columns) {
    Target t{s.rows * s.cols, s.cols, columns, s.taps, s.channels, {}};
    if (columns == Target::kScattered)
        for (int64_t c = 0; c < s.cols; ++c) t.places.push_back(s.cols - 1 - c);
    return t;
}

int64_t place(const Source& s, Target::Columns columns, int64_t col) {
    if (columns == Target::kDense) return col;
    if (columns == Target::kScattered) return s.cols - 1 - col;
    return col % s.channels * s.taps + col / s.channels;
}

void check(const KernelSet& set, const Source& s, Target::Columns columns) {
    const int64_t all_rows = s.groups * s.rows, count = all_rows * s.cols;
    std::vector<float> scale(static_cast<size_t>(all_rows)), zero(scale.size());
    for (auto& x : scale) x = std::ldexp(static_cast<float>(draw(1, 1 << 20)), -20);
    for (auto& x : zero) x = static_cast<float>(draw(-128, 127));
    const bool per_row = draw(0, 1) == 1;
    std::vector<float> want(static_cast<size_t>(count));
    std::vector<int8_t> want_ints(want.size());
    for (int64_t r = 0; r < all_rows; ++r)
        for (int64_t c = 0; c < s.cols; ++c) {
            const int8_t q = s.bytes[static_cast<size_t>(s.offset(r / s.rows, r % s.rows, c))];
            const auto at = static_cast<size_t>(r * s.cols + place(s, columns, c)),
                       p = static_cast<size_t>(per_row * r);
            want[at] = (static_cast<float>(q) - zero[p]) * scale[p];
            want_ints[at] = q;
        }
    const Target to = target(s, columns);
    std::vector<float> got(want.size(), 7.0f);
    to_float(s.matrix, {scale.data(), zero.data(), per_row}, to, set, draw(0, 1) == 1, on_two_threads, got.data(),
             kFloat32);
    if (std::memcmp(got.data(), want.data(), want.size() * 4) != 0) fail(set, s, "float32");
    std::vector<int8_t> ints(want.size(), 7);
    to_int8(s.matrix, to, set, on_two_threads, ints.data());
    if (ints != want_ints) fail(set, s, "int8");
    std::vector<uint16_t> halves(want.size()), want_halves(want.size());
    kScalarKernels.to_bfloat16(want.data(), want_halves.data(), count, false);
    to_float(s.matrix, {scale.data(), zero.data(), per_row}, to, set, draw(0, 1) == 1, on_two_threads, halves.data(),
             kBFloat16);
    if (halves != want_halves) fail(set, s, "bfloat16");
}

void check_embedding(const KernelSet& set) {
    const int64_t bits = int64_t{8} >> draw(0, 2), cols = draw(1, 70) * (8 / bits), rows = draw(1, 20);
    const int64_t row_bytes = cols * bits / 8 + (bits == 8 ? 8 : 4);
    std::vector<uint8_t> bytes(static_cast<size_t>(rows * row_bytes));
    for (auto& byte : bytes) byte = static_cast<uint8_t>(rng());
    std::vector<float> scale(static_cast<size_t>(rows), 0.25f), zero(scale.size(), 3.5f);
    std::vector<float> got(static_cast<size_t>(rows * cols)), want(got.size());
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < cols; ++c) {
            const int64_t bit = c * bits;
            const int q = bytes[static_cast<size_t>(r * row_bytes + bit / 8)] >> (bit % 8) & ((1 << bits) - 1);
            want[static_cast<size_t>(r * cols + c)] = (static_cast<float>(q) - 3.5f) * 0.25f;
        }
    const EmbeddingTable table{bytes.data(), rows, cols, bits, row_bytes, scale.data(), zero.data()};
    embedding_to_float(table, set, draw(0, 1) == 1, on_two_threads, got.data(), kFloat32, cols, 1);
    if (got == want) return;
    std::printf("%s: embedding of %lld bits differs\n", set.name, static_cast<long long>(bits));
    std::exit(1);
}

}  // namespace

int main(int argc, char** argv) {
    const uint64_t seed = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1;
    std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
    rng.seed(seed);
    for (int index = 0; index < num_kernel_sets(); ++index) {
        const KernelSet& set = kernel_set(index);
        for (int round = 0; round < 60; ++round) {
            for (const auto& make : {blocked, depthwise, groupwise, direct}) {
                const Source s = make();
                for (const auto columns : {Target::kDense, Target::kTransposed, Target::kScattered})
                    check(set, s, columns);
            }
            check_embedding(set);
        }
        std::printf("%s: same as the formula\n", set.name);
    }
    return 0;
}
