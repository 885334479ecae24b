// Scales and zero points: what is good, and what a scheme makes of them for the kernels. No torch header.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "kernels/kernels.h"

namespace qdeq {

// Whether each is positive and finite.
inline bool good_scales(const float* scale, int64_t count) {
    int bad = 0;  // no early end: the compiler then takes many at a time
    for (int64_t i = 0; i < count; ++i) bad |= !(scale[i] > 0.0f) | !(scale[i] <= std::numeric_limits<float>::max());
    return bad == 0;
}

// Whether each is a value of the integers' type.
template <typename T>
bool zero_points_in_range(const T* zero_point, int64_t count, IntType type) {
    const int64_t low = type == kInt8 ? -128 : type == kUInt8 ? 0 : std::numeric_limits<int32_t>::min();
    const uint64_t largest = type == kInt32 ? 0xFFFFFFFF : 0xFF;  // above the lowest; all of its bits are ones
    uint64_t bits = 0;
    for (int64_t i = 0; i < count; ++i) bits |= static_cast<uint64_t>(zero_point[i]) - static_cast<uint64_t>(low);
    return bits <= largest;
}

// Scales and zero points as a formula takes them (kernels.h). Bad scales pass: the caller decides on them.
struct Channels {
    Formula formula = kSubFloat;
    std::vector<float> scale, zero_point;
    std::vector<double> double_scale;
    int32_t int_zero_point = 0;

    // One for all. An 8-bit value less its zero point is exact either way; with int32 the vector units do it sooner.
    static Channels per_tensor(double scale, int64_t zero_point) {
        Channels c;
        c.formula = kSubInt32;
        c.scale.assign(1, static_cast<float>(scale));
        c.int_zero_point = static_cast<int32_t>(zero_point);
        return c;
    }

    // One for each channel. Integer zero points stand beside double scales, float ones beside scales rounded to float.
    template <typename S, typename Z>
    static Channels per_channel(const S* scale, const Z* zero_point, int64_t count) {
        Channels c;
        c.scale.resize(count);
        c.zero_point.resize(count);
        int inexact = 0;
        for (int64_t i = 0; i < count; ++i) {
            c.scale[i] = static_cast<float>(scale[i]);
            c.zero_point[i] = static_cast<float>(zero_point[i]);
            inexact |= static_cast<S>(c.scale[i]) != scale[i];
        }
        if (inexact != 0 && std::numeric_limits<Z>::is_integer) {
            c.formula = kDouble;
            c.double_scale.assign(scale, scale + count);
        }
        return c;
    }

    bool good() const { return good_scales(scale.data(), static_cast<int64_t>(scale.size())); }
    const void* scales() const {
        return formula == kDouble ? static_cast<const void*>(double_scale.data()) : scale.data();
    }
    const void* zero_points() const {
        return formula == kSubInt32 ? static_cast<const void*>(&int_zero_point) : zero_point.data();
    }
};

}  // namespace qdeq
