// Packed weight matrices and their formats. Plain data, for the bindings and for every instruction set.
#pragma once

#include "core/common.hpp"

namespace minicpm4 {

enum class Kind : int { f32, f16, bf16, int8, int4, ternary, int6, int5, int3, int2 };

struct KindInfo {
    const char* name;
    Kind kind;
    i64 bits;            // of a weight's code
    i64 row_multiple;
    i64 group_multiple;  // 0: no groups

    constexpr i64 row_bytes(i64 cols) const { return cols * bits / 8; }
    // Elements of codes in a row: floats, or bytes.
    constexpr i64 row_codes(i64 cols) const { return group_multiple > 0 ? row_bytes(cols) : cols; }
};

// In the order of Kind. formats/kinds.py has more to say of each.
constexpr KindInfo kKinds[] = {
    {"f32", Kind::f32, 32, 1, 0},       {"f16", Kind::f16, 16, 1, 0},
    {"bf16", Kind::bf16, 16, 1, 0},     {"int8", Kind::int8, 8, 16, 16},
    {"int4", Kind::int4, 4, 32, 32},    {"ternary", Kind::ternary, 2, 64, 32},
    {"int6", Kind::int6, 6, 64, 16},    {"int5", Kind::int5, 5, 32, 32},
    {"int3", Kind::int3, 3, 64, 16},    {"int2", Kind::int2, 2, 64, 16},
};
enum : int { kNumKinds = 10 };

// How scales or offsets lie: floats, or whole multiples ("steps") of a float16 that kSuper weights share, a byte each or
// in the low or high four bits of one.
enum class ScaleType : int { f16, f32, steps, low_steps, high_steps };
constexpr i64 kSuper = 256;

MC_INLINE constexpr i64 scale_bytes(ScaleType type) { return type == ScaleType::f16 ? 2 : type == ScaleType::f32 ? 4 : 1; }

// Scales, or offsets, of a matrix; supers: float16, one for each 2^shift groups, or null.
struct GroupFloats {
    const void* data;
    ScaleType type;
    const u16* supers;
    int shift;
};

// A packed weight matrix (formats/quant.py). scales and offsets: (rows, cols / group) or null; in panels of
// kPanelRows rows (panels, cols / group, kPanelRows). Steps of four bits lie in one array: then both point to it.
struct Matrix {
    Kind kind = Kind::f32;
    i64 rows = 0;
    i64 cols = 0;
    i64 group = 0;
    const void* codes = nullptr;
    const void* scales = nullptr;
    const void* offsets = nullptr;
    ScaleType scale_type = ScaleType::f16;
    ScaleType offset_type = ScaleType::f16;
    const u16* super_scales = nullptr;
    const u16* super_offsets = nullptr;
    int super_shift = 0;  // log2 of the groups of kSuper weights
    bool panels = false;
};

MC_INLINE GroupFloats scales_of(const Matrix& m) { return {m.scales, m.scale_type, m.super_scales, m.super_shift}; }
MC_INLINE GroupFloats offsets_of(const Matrix& m) { return {m.offsets, m.offset_type, m.super_offsets, m.super_shift}; }

enum : int { kPanelRows = 16 };

}  // namespace minicpm4
