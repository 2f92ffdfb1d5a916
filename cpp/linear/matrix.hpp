// Packed weight matrices and their formats. Plain data, for the bindings and for every instruction set.
#pragma once

#include "core/common.hpp"

namespace minicpm4 {

enum class Kind : int { f32, f16, bf16, int8, int4, ternary };

struct KindInfo {
    const char* name;
    Kind kind;
    i64 weights_per_code;
    i64 row_multiple;
    i64 group_multiple;  // 0: no groups
};

// In the order of Kind. formats/kinds.py has more to say of each.
constexpr KindInfo kKinds[] = {
    {"f32", Kind::f32, 1, 1, 0},    {"f16", Kind::f16, 1, 1, 0},     {"bf16", Kind::bf16, 1, 1, 0},
    {"int8", Kind::int8, 1, 16, 16}, {"int4", Kind::int4, 2, 32, 32}, {"ternary", Kind::ternary, 4, 64, 32},
};
enum : int { kNumKinds = 6 };

// A packed weight matrix (formats/quant.py). scales and offsets: (rows, cols / group) or null; in panels of
// kPanelRows rows (panels, cols / group, kPanelRows).
struct Matrix {
    Kind kind = Kind::f32;
    i64 rows = 0;
    i64 cols = 0;
    i64 group = 0;
    const void* codes = nullptr;
    const void* scales = nullptr;
    const void* offsets = nullptr;
    bool half_scales = false;
    bool half_offsets = false;
    bool panels = false;
};

enum : int { kPanelRows = 16 };

}  // namespace minicpm4
