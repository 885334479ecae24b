// float8 e4m3fn codes of every vector kernel set, written once over a small type B of byte vectors.
//
// bfloat16 results come from a table. A code's value is a mantissa times a power of two, so with one scale there are 8
// products, and 8 more for the subnormal codes; the exponent is added to their bits as an integer. That is exact while
// no product is subnormal or overflows. Other results, and scales near the ends of float32, take the code's value,
// which is the same table with a scale of 1, and multiply.
//
// An ISA file defines B beside V. It offers kBytes, U8 (as many bytes), U16 (half as many 16-bit values), F (a quarter
// as many floats), and
//   U8 load(const uint8_t*): in the order that zip_low and zip_high need to give values in theirs,
//   U8 table(const uint8_t*): 16 bytes for lookup(U8 table, U8 index), U8 set1(uint8_t), and_, or_, min, eq, bool
//   any(U8), U16 zip_low(U8 low, U8 high), zip_high: the first and the second half of the values, each from two bytes,
//   U16 set1_16, and_16, add_16, shift_right_4 (copies of the sign come in), select_16(mask, where_set, where_clear),
//   F first_floats(U16), second_floats(U16): bfloat16 to float, F set1_float, F load_floats, F sub, F mul,
//   U16 round(F, F): to bfloat16; of NaNs only those with bits 0x7FC00000 stay NaN, U8 load_nibbles(const uint8_t*),
//   put(uint16_t*, U16, bool stream), put(float*, F, bool stream): a stream needs dst aligned to the vector,
//   split(const uint16_t* x, uint16_t y, uint8_t* low, uint8_t* high): the bytes of x[0 .. 7] and x[8 .. 15] - y,
//   put_halves(uint16_t*, F, bool stream): rounded to float16.

// (value - zero) * scale of codes 0 to 15, rounded to 16 bits.
template <OutType kOut>
inline void sixteen_products(const float* values, float zero, float scale, uint16_t* halves) {
    constexpr int64_t kFloats = B::kBytes / 4;
    const auto zeros = B::set1_float(zero), scales = B::set1_float(scale);
    for (int64_t i = 0; i < 16; i += 2 * kFloats) {
        const auto a = B::mul(B::sub(B::load_floats(values + i), zeros), scales);
        const auto b = B::mul(B::sub(B::load_floats(values + i + kFloats), zeros), scales);
        if constexpr (kOut == kBFloat16) {
            B::put(halves + i, B::round(a, b), false);
        } else {
            B::put_halves(halves + i, a, false);
            B::put_halves(halves + i + kFloats, b, false);
        }
    }
}

// Bytes of the table's 16 entries: the products of codes 0 .. 15 as bfloat16, less their exponent.
struct E4m3Table {
    alignas(16) uint8_t low[16], high[16];
    E4m3Table() = default;
    E4m3Table(const float* values, float scale) {
        uint16_t halves[16];
        sixteen_products<kBFloat16>(values, 0.0f, scale, halves);
        B::split(halves, 8 * 16, low, high);
    }
};

inline bool fits_table(float scale) {
    const uint32_t size = float_bits(scale) & 0x7FFFFFFFu;
    return size > 0x0D800000u && size < 0x71800000u;  // 2^-100 to 2^100: not 0
}

struct E4m3Lookup {
    typename B::U8 low, high;
    explicit E4m3Lookup(const E4m3Table& t) : low(B::table(t.low)), high(B::table(t.high)) {}

    // codes: in the high bytes. Adding the sign to products of either sign flips it.
    static typename B::U16 half(typename B::U16 products, typename B::U16 codes) {
        return B::add_16(products, B::and_16(B::shift_right_4(codes), B::set1_16(0x8780)));
    }

    // put(first half, second half) takes B::kBytes values as bfloat16.
    template <typename Put>
    void values(const uint8_t* src, Put put) const {
        const auto codes = B::load(src), zero = B::set1(0);
        const auto sizes = B::and_(codes, B::set1(0x7F));
        // Of a subnormal code the mantissa, which is the code; of others the mantissa and 8.
        const auto index = B::min(sizes, B::or_(B::and_(codes, B::set1(7)), B::set1(8)));
        const auto lows = B::lookup(low, index), highs = B::lookup(high, index);
        auto first = half(B::zip_low(lows, highs), B::zip_low(zero, codes));
        auto second = half(B::zip_high(lows, highs), B::zip_high(zero, codes));
        const auto is_nan = B::eq(sizes, B::set1(0x7F));
        if (B::any(is_nan)) {
            const auto nan = B::set1_16(0x7FC0);
            first = B::select_16(B::zip_low(is_nan, is_nan), nan, first);
            second = B::select_16(B::zip_high(is_nan, is_nan), nan, second);
        }
        put(first, second);
    }
};

// Values in bfloat16, the first and the second half of B::kBytes, times a scale of each half in float32.
template <OutType kOut>
inline void put_products(void* dst, typename B::U16 first, typename B::U16 second, typename B::F scale,
                         typename B::F second_scale, bool stream) {
    constexpr int64_t kFloats = B::kBytes / 4;
    const auto a = B::mul(B::first_floats(first), scale), b = B::mul(B::second_floats(first), scale);
    const auto c = B::mul(B::first_floats(second), second_scale), d = B::mul(B::second_floats(second), second_scale);
    if constexpr (kOut == kBFloat16) {
        auto* to = static_cast<uint16_t*>(dst);
        B::put(to, B::round(a, b), stream);
        B::put(to + 2 * kFloats, B::round(c, d), stream);
    } else {
        const auto put = [&](int64_t at, typename B::F x) {
            if constexpr (kOut == kFloat32)
                B::put(static_cast<float*>(dst) + at, x, stream);
            else
                B::put_halves(static_cast<uint16_t*>(dst) + at, x, stream);
        };
        put(0, a);
        put(kFloats, b);
        put(2 * kFloats, c);
        put(3 * kFloats, d);
    }
}

// many(src, dst, stream) for every B::kBytes codes of kBits; what is left goes through buffers of that size.
template <int kBits, OutType kOut, typename Many>
inline void over_codes(const uint8_t* src, void* dst, int64_t count, bool stream, Many many) {
    constexpr int64_t kStep = B::kBytes, kSize = kOut == kFloat32 ? 4 : 2;
    auto* to = static_cast<uint8_t*>(dst);
    const bool aligned = stream && reinterpret_cast<uintptr_t>(dst) % B::kBytes == 0;
    int64_t i = 0;
    if (aligned) {
        for (; i + kStep <= count; i += kStep) many(src + i * kBits / 8, to + i * kSize, true);
    } else {
        for (; i + kStep <= count; i += kStep) many(src + i * kBits / 8, to + i * kSize, false);
    }
    if (i == count) return;
    uint8_t codes[kStep] = {};
    uint8_t results[kStep * kSize];
    std::memcpy(codes, src + i * kBits / 8, ((count - i) * kBits + 7) / 8);
    many(codes, results, false);
    std::memcpy(to + i * kSize, results, (count - i) * kSize);
}

inline void e4m3_to_bfloat16(const E4m3Lookup& lookup, const uint8_t* src, void* dst, int64_t count, bool stream) {
    over_codes<8, kBFloat16>(src, dst, count, stream, [&](const uint8_t* codes, void* to, bool past_caches) {
        lookup.values(codes, [=](typename B::U16 first, typename B::U16 second) {
            B::put(static_cast<uint16_t*>(to), first, past_caches);
            B::put(static_cast<uint16_t*>(to) + B::kBytes / 2, second, past_caches);
        });
    });
}

// Multiplied as float32, then rounded to 16 bits. The one NaN among the values stays what it is.
template <OutType kOut>
inline void e4m3_by_product(const E4m3Lookup& of_one, float scale, const uint8_t* src, void* dst, int64_t count,
                            bool stream) {
    const auto scales = B::set1_float(scale);
    over_codes<8, kOut>(src, dst, count, stream, [&](const uint8_t* codes, void* to, bool past_caches) {
        of_one.values(codes, [=](typename B::U16 first, typename B::U16 second) {
            put_products<kOut>(to, first, second, scales, scales, past_caches);
        });
    });
}

// one_block(block, src, dst, count) for each block of each row of codes of kBits; blocks begin with a byte.
template <int kBits, OutType kOut, typename OneBlock>
inline void over_blocks(const CodePanel& p, OneBlock one_block) {
    for (int64_t r = 0; r < p.num_rows; ++r)
        for (int64_t block = 0, i = 0; i < p.row_len; ++block, i += p.block_len)
            one_block(block, p.src + r * p.src_row_stride + i * kBits / 8,
                      results_at(p.dst, r * p.dst_row_stride + i, kOut), std::min(p.block_len, p.row_len - i));
}

constexpr int64_t kTables = 64;

// one_part(panel) for parts of at most kTables blocks.
template <OutType kOut, typename OnePart>
inline void over_parts(const CodePanel& panel, OnePart one_part) {
    const int64_t most = std::min((panel.row_len + kTables - 1) / kTables, panel.block_len) * kTables;
    CodePanel part = panel;
    for (int64_t i = 0; i < panel.row_len; i += most) {
        part.src = panel.src + i * panel.bits / 8;
        part.dst = results_at(panel.dst, i, kOut);
        part.row_len = std::min(most, panel.row_len - i);
        part.scale = panel.scale + i / panel.block_len;
        part.zero = panel.zero == nullptr ? nullptr : panel.zero + i / panel.block_len;
        one_part(part);
    }
}

// To bfloat16, at most kTables blocks: a table for each, made once for all rows.
inline void e4m3_by_table(const CodePanel& p, const E4m3Lookup& of_one) {
    E4m3Table tables[kTables];
    bool has_table[kTables];
    for (int64_t block = 0; block * p.block_len < p.row_len; ++block) {
        has_table[block] = fits_table(p.scale[block]);
        if (has_table[block]) tables[block] = E4m3Table(p.values, p.scale[block]);
    }
    over_blocks<8, kBFloat16>(p, [&](int64_t block, const uint8_t* src, void* dst, int64_t count) {
        if (has_table[block])
            e4m3_to_bfloat16(E4m3Lookup(tables[block]), src, dst, count, p.stream);
        else
            e4m3_by_product<kBFloat16>(of_one, p.scale[block], src, dst, count, p.stream);
    });
}

template <OutType kOut>
void QDEQ_ISA(dequantize_e4m3)(const CodePanel& panel) {
    constexpr int64_t kWorthATable = 32;  // codes; a table is 16 products
    const E4m3Table one(panel.values, 1.0f);
    const E4m3Lookup of_one(one);
    if (kOut != kBFloat16 || panel.num_rows * std::min(panel.block_len, panel.row_len) < kWorthATable) {
        over_blocks<8, kOut>(panel, [&](int64_t block, const uint8_t* src, void* dst, int64_t count) {
            e4m3_by_product<kOut>(of_one, panel.scale[block], src, dst, count, panel.stream);
        });
        return;
    }
    over_parts<kOut>(panel, [&](const CodePanel& part) { e4m3_by_table(part, of_one); });
}
