// The loops of every vector kernel set, written once over a small type V of vector operations.
//
// An ISA file defines V inside namespace qdeq's unnamed namespace, under its target attribute, and includes this file
// there; so each set has its own copy and the linker cannot mix them. V offers:
//   kLanes, F (vector of kLanes floats), F set1(float), F loadu(const float*), F load(const T*) (integers to float),
//   F load_sub(const T*, int32_t) (wrapping int32 subtraction first), F sub(F, F), F mul(F, F),
//   F mul_double(F, const Scales&) with Scales made by broadcast(double) or load_doubles(const double*),
//   void storeu(float*, F), void stream(float*, F) (aligned to the vector).
// and the macro QDEQ_ISA(name), which puts the set's name behind a kernel's.
// A set with masks also defines First, the first lanes of a vector, and takes it as a last argument of every load and
// of storeu: the other lanes are neither read nor written. kHasMasks says so.
// No instruction here rounds more than once per operation named in kernels.h.

template <typename T, Formula kFormula, bool kPerElement>
struct RowMath;

template <typename T, bool kPerElement>
struct RowMath<T, kSubFloat, kPerElement> {
    const float *scale, *zero_point;
    typename V::F scales, zeros;
    RowMath(const float* s, const float* z) : scale(s), zero_point(z), scales(V::set1(*s)), zeros(V::set1(*z)) {}
    template <typename... First>
    typename V::F many(const T* src, int64_t i, First... first) const {
        const auto q = V::load(src + i, first...);
        if constexpr (kPerElement)
            return V::mul(V::sub(q, V::loadu(zero_point + i, first...)), V::loadu(scale + i, first...));
        else
            return V::mul(V::sub(q, zeros), scales);
    }
};

template <typename T>
struct RowMath<T, kSubInt32, false> {
    const float* scale;
    const int32_t* zero_point;
    typename V::F scales;
    RowMath(const float* s, const int32_t* z) : scale(s), zero_point(z), scales(V::set1(*s)) {}
    template <typename... First>
    typename V::F many(const T* src, int64_t i, First... first) const {
        return V::mul(V::load_sub(src + i, *zero_point, first...), scales);
    }
};

template <typename T, bool kPerElement>
struct RowMath<T, kDouble, kPerElement> {
    const double* scale;
    const float* zero_point;
    typename V::Scales scales;
    typename V::F zeros;
    RowMath(const double* s, const float* z) : scale(s), zero_point(z), scales(V::broadcast(*s)), zeros(V::set1(*z)) {}
    template <typename... First>
    typename V::F many(const T* src, int64_t i, First... first) const {
        const auto q = V::load(src + i, first...);
        if constexpr (kPerElement)
            return V::mul_double(V::sub(q, V::loadu(zero_point + i, first...)), V::load_doubles(scale + i, first...));
        else
            return V::mul_double(V::sub(q, zeros), scales);
    }
};

template <typename W, typename Math, typename T>  // W is V; a parameter, since not every V has First
inline void masked_part(const Math& math, const T* src, float* dst, int64_t begin, int64_t count) {
    const typename W::First first(count);
    W::storeu(dst + begin, math.many(src, begin, first), first);
}

// Every whole vector from value i on, four at a time; returns where they end.
template <bool kStream, typename Math, typename T>
inline int64_t whole_vectors(const Math& math, const T* src, float* dst, int64_t i, int64_t n) {
    constexpr int64_t kLanes = V::kLanes;
    const auto put = [dst](int64_t at, typename V::F values) {
        if constexpr (kStream)
            V::stream(dst + at, values);
        else
            V::storeu(dst + at, values);
    };
    for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
        const auto a = math.many(src, i);
        const auto b = math.many(src, i + kLanes);
        const auto c = math.many(src, i + 2 * kLanes);
        const auto d = math.many(src, i + 3 * kLanes);
        put(i, a);
        put(i + kLanes, b);
        put(i + 2 * kLanes, c);
        put(i + 3 * kLanes, d);
    }
    for (; i + kLanes <= n; i += kLanes) put(i, math.many(src, i));
    return i;
}

template <typename T, Formula kFormula, bool kPerElement>
inline void one_row(const T* src, float* dst, int64_t n, const typename FormulaTypes<kFormula>::Scale* scale,
                    const typename FormulaTypes<kFormula>::Zero* zero_point, bool stream) {
    constexpr int64_t kLanes = V::kLanes;
    const RowMath<T, kFormula, kPerElement> math(scale, zero_point);
    // Fewer values than a vector holds.
    const auto part = [&](int64_t begin, int64_t end) {
        if constexpr (V::kHasMasks) {
            if (begin == end) return;
            masked_part<V>(math, src, dst, begin, end - begin);
        } else {
            for (int64_t i = begin; i < end; ++i) {
                const int64_t c = kPerElement ? i : 0;
                dst[i] = dequantize_one<kFormula>(src[i], scale[c], zero_point[c]);
            }
        }
    };
    int64_t i = 0;
    if (stream) {
        // A row that can never be aligned is written in parts.
        const int64_t head = floats_until_aligned<kLanes * 4>(dst, n);
        for (; i < head; i += kLanes) part(i, std::min(head, i + kLanes));
        part(whole_vectors<true>(math, src, dst, head, n), n);
        return;
    }
    i = whole_vectors<false>(math, src, dst, i, n);
    if (!V::kHasMasks && i < n && n >= kLanes) {
        // A whole vector that ends with the row: some of its values are computed twice, to the same bits.
        V::storeu(dst + n - kLanes, math.many(src, n - kLanes));
    } else {
        part(i, n);
    }
}

template <typename T, Formula kFormula, bool kPerElement>
void QDEQ_ISA(dequantize_rows)(const RowBlock& b) {
    const auto* scale = static_cast<const typename FormulaTypes<kFormula>::Scale*>(b.scale);
    const auto* zero_point = static_cast<const typename FormulaTypes<kFormula>::Zero*>(b.zero_point);
    if (b.row_len == 0) return;
    for (int64_t r = 0; r < b.num_rows; ++r) {
        const int64_t c = kPerElement ? 0 : r * b.channel_step;
        one_row<T, kFormula, kPerElement>(static_cast<const T*>(b.src) + r * b.src_row_stride,
                                          b.dst + r * b.dst_row_stride, b.row_len, scale + c, zero_point + c, b.stream);
    }
}

void copy(const float* src, float* dst, int64_t count, bool stream) {
    if (!stream) {
        std::memcpy(dst, src, count * sizeof(float));
        return;
    }
    const int64_t head = floats_until_aligned<V::kLanes * 4>(dst, count);
    std::memcpy(dst, src, head * sizeof(float));
    int64_t i = head;
    for (; i + V::kLanes <= count; i += V::kLanes) V::stream(dst + i, V::loadu(src + i));
    std::memcpy(dst + i, src + i, (count - i) * sizeof(float));
}

template <uint16_t (*kOne)(float), typename Many>
inline void to_16bit(const float* src, uint16_t* dst, int64_t count, bool stream, Many many) {
    // many(src, dst, stream) converts V::kLanes values; a streamed store needs dst aligned to 2 * kLanes bytes.
    constexpr int64_t kLanes = V::kLanes;
    int64_t i = 0;
    if (stream) {
        const auto misaligned = reinterpret_cast<uintptr_t>(dst) % (2 * kLanes);
        const int64_t head = misaligned == 0 ? 0 : static_cast<int64_t>(2 * kLanes - misaligned) / 2;
        for (; i < head && i < count; ++i) dst[i] = kOne(src[i]);
        for (; i + kLanes <= count; i += kLanes) many(src + i, dst + i, true);
    } else {
        for (; i + kLanes <= count; i += kLanes) many(src + i, dst + i, false);
    }
    for (; i < count; ++i) dst[i] = kOne(src[i]);
}
