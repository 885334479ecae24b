// 4-bit codes of every vector kernel set, written once over the byte vectors B of vector_e4m3.inl.
//
// 16-bit results come from a table of the 16 products of a block, each computed and rounded as the formula says. Where
// a block is too short for that, and for float32, the values less the zero point come from a table, in bfloat16 where
// that holds them exactly, and are multiplied.

struct NibbleTable {
    alignas(16) uint8_t low[16], high[16];
};

template <OutType kOut>
inline NibbleTable nibble_table(const float* values, float zero, float scale) {
    uint16_t halves[16];
    sixteen_products<kOut>(values, zero, scale, halves);
    NibbleTable table;
    B::split(halves, 0, table.low, table.high);
    return table;
}

struct NibbleLookup {
    typename B::U8 low, high;
    explicit NibbleLookup(const NibbleTable& t) : low(B::table(t.low)), high(B::table(t.high)) {}

    // put(first half, second half) takes B::kBytes values of 16 bits.
    template <typename Put>
    void values(const uint8_t* src, Put put) const {
        const auto codes = B::load_nibbles(src);
        const auto lows = B::lookup(low, codes), highs = B::lookup(high, codes);
        put(B::zip_low(lows, highs), B::zip_high(lows, highs));
    }
};

// Whether bfloat16 holds values less a zero point. Finite ones are meant: products of these are never NaN.
inline bool exact_in_bfloat16(const float* values, float zero) {
    for (int i = 0; i < 16; ++i) {
        const float x = values[i] - zero;
        if ((float_bits(x) & 0xFFFFu) != 0 || (float_bits(x) & 0x7F800000u) == 0x7F800000u) return false;
    }
    return true;
}

template <OutType kOut>
inline void nibbles_by_table(const CodePanel& p) {
    NibbleTable tables[kTables];
    for (int64_t block = 0; block * p.block_len < p.row_len; ++block)
        tables[block] = nibble_table<kOut>(p.values, p.zero == nullptr ? 0.0f : p.zero[block], p.scale[block]);
    over_blocks<4, kOut>(p, [&](int64_t block, const uint8_t* src, void* dst, int64_t count) {
        const NibbleLookup lookup(tables[block]);
        over_codes<4, kOut>(src, dst, count, p.stream, [&](const uint8_t* codes, void* to, bool past_caches) {
            lookup.values(codes, [=](typename B::U16 first, typename B::U16 second) {
                B::put(static_cast<uint16_t*>(to), first, past_caches);
                B::put(static_cast<uint16_t*>(to) + B::kBytes / 2, second, past_caches);
            });
        });
    });
}

// Blocks of half a vector, without zero points: the two halves have scales of their own.
template <OutType kOut>
inline void nibbles_in_half_vectors(const CodePanel& p, const NibbleLookup& values) {
    const int64_t last = (p.row_len - 1) / p.block_len;
    for (int64_t r = 0; r < p.num_rows; ++r) {
        const uint8_t* row = p.src + r * p.src_row_stride;
        over_codes<4, kOut>(row, results_at(p.dst, r * p.dst_row_stride, kOut), p.row_len, p.stream,
                            [&, block = int64_t{0}](const uint8_t* codes, void* to, bool past_caches) mutable {
                                const auto scale = B::set1_float(p.scale[block]);
                                const auto second_scale = B::set1_float(p.scale[std::min(block + 1, last)]);
                                block += 2;
                                values.values(codes, [=](typename B::U16 first, typename B::U16 second) {
                                    put_products<kOut>(to, first, second, scale, second_scale, past_caches);
                                });
                            });
    }
}

template <OutType kOut>
inline void nibbles_by_product(const CodePanel& p) {
    const NibbleLookup plain(nibble_table<kBFloat16>(p.values, 0.0f, 1.0f));
    if (p.zero == nullptr && p.block_len == B::kBytes / 2) {
        nibbles_in_half_vectors<kOut>(p, plain);
        return;
    }
    over_blocks<4, kOut>(p, [&](int64_t block, const uint8_t* src, void* dst, int64_t count) {
        const auto lookup =
            p.zero == nullptr ? plain : NibbleLookup(nibble_table<kBFloat16>(p.values, p.zero[block], 1.0f));
        const auto scale = B::set1_float(p.scale[block]);
        over_codes<4, kOut>(src, dst, count, p.stream, [&](const uint8_t* codes, void* to, bool past_caches) {
            lookup.values(codes, [=](typename B::U16 first, typename B::U16 second) {
                put_products<kOut>(to, first, second, scale, scale, past_caches);
            });
        });
    });
}

template <OutType kOut>
void QDEQ_ISA(dequantize_nibbles)(const CodePanel& panel) {
    constexpr int64_t kWorthATable = 64;  // codes; a table is 16 products
    if (kOut != kFloat32 && panel.num_rows * std::min(panel.block_len, panel.row_len) >= kWorthATable) {
        over_parts<kOut>(panel,
                         [](const CodePanel& part) { nibbles_by_table<kOut == kFloat32 ? kBFloat16 : kOut>(part); });
        return;
    }
    bool exact = exact_in_bfloat16(panel.values, 0.0f);
    for (int64_t block = 0; panel.zero != nullptr && exact && block * panel.block_len < panel.row_len; ++block)
        exact = exact_in_bfloat16(panel.values, panel.zero[block]);
    exact ? nibbles_by_product<kOut>(panel) : dequantize_codes<kOut>(panel);
}
