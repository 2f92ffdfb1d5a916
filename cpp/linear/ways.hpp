// How each instruction set multiplies x by a weight matrix: format and layout of the weights x rows of x -> method.
//
// linear/linear.hpp takes the first way of its level that fits, and compiles a method for a format only where a way leads to
// it. So what is printed from these tables (minicpm4 doctor --ways, docs/architecture.md) is what runs. Every build
// has the tables of all levels, of other processors too.
#pragma once

#include "linear/matrix.hpp"

namespace minicpm4 {

enum class Method : int {
    floats, bf16, words, panels, narrow_panels, pairs, halves, tiles,
};
enum : int { kMethods = 8 };

struct MethodInfo {
    const char* name;
    const char* file;  // in cpp/linear/
    const char* meaning;
};

// In the order of Method.
constexpr MethodInfo kMethodInfos[] = {
    {"floats", "floats.hpp", "weights become float32 and meet x in dot products; lanes are columns"},
    {"bf16", "floats.hpp", "the same with x and weights rounded to bf16, in pairs"},
    {"words", "words.hpp", "x becomes 16-bit integers, which meet codes in registers, or two bytes, which do in fours"},
    {"panels", "panels.hpp", "x becomes two bytes, or words for several rows, which are broadcast to panels of codes; lanes are weight rows"},
    {"narrow panels", "int8.hpp", "the same with x in one byte: only where activations may be rounded to 8 bits"},
    {"pairs", "pairs.hpp", "x and codes become blocks of 16-bit integers, multiplied in pairs"},
    {"halves", "halves.hpp", "x becomes blocks of two bytes, codes of one, multiplied in fours or as matrices"},
    {"tiles", "amx.hpp", "x and weights become tiles of bf16"},
};

enum class Layout : int { rows, panels, any };

struct Way {
    u32 kinds;  // a bit for each Kind
    Layout layout;
    i64 first, last;  // rows of x
    bool narrow;      // only where x may be rounded to 8 bits
    Method method;
};

constexpr u32 kFloat32 = 1U << static_cast<int>(Kind::f32);
constexpr u32 kHalves = 1U << static_cast<int>(Kind::f16) | 1U << static_cast<int>(Kind::bf16);
constexpr u32 kInt8 = 1U << static_cast<int>(Kind::int8);
constexpr u32 kSmall = 1U << static_cast<int>(Kind::int4) | 1U << static_cast<int>(Kind::ternary);
constexpr u32 kGrouped = kInt8 | kSmall;
constexpr u32 kPlanes = 1U << static_cast<int>(Kind::int6) | 1U << static_cast<int>(Kind::int5) |
                        1U << static_cast<int>(Kind::int3) | 1U << static_cast<int>(Kind::int2);
constexpr u32 kIntegers = kGrouped | kPlanes;
constexpr u32 kAllKinds = kFloat32 | kHalves | kIntegers;
constexpr i64 kMany = i64(1) << 40;  // any number of rows of x

// Up to how many rows of x are few is measured (docs/log.md): of more, methods that unpack weights once for all are
// faster.
constexpr Way kScalarWays[] = {
    {kAllKinds, Layout::rows, 1, kMany, false, Method::floats},
};
constexpr Way kAvx2Ways[] = {
    {kSmall | kPlanes, Layout::panels, 1, kMany, true, Method::narrow_panels},  // codes of 8 bits would overflow its sums
    {kIntegers, Layout::panels, 1, 16, false, Method::panels},
    {kIntegers, Layout::panels, 17, kMany, false, Method::pairs},
    {kIntegers, Layout::rows, 1, kMany, false, Method::pairs},
};
constexpr Way kVnniWays[] = {
    {kIntegers, Layout::panels, 1, kMany, true, Method::narrow_panels},
    {kIntegers, Layout::panels, 1, 16, false, Method::panels},
    {kIntegers, Layout::panels, 17, kMany, false, Method::pairs},
    {kIntegers, Layout::rows, 1, kMany, false, Method::pairs},
};
constexpr Way kBF16Ways[] = {
    {kHalves, Layout::rows, 1, kMany, false, Method::bf16},
};
constexpr Way kAmxWays[] = {
    {kGrouped, Layout::any, 17, kMany, false, Method::tiles},
    {kHalves, Layout::rows, 9, kMany, false, Method::tiles},
};
constexpr Way kNeonWays[] = {
    {kGrouped, Layout::rows, 1, kMany, false, Method::words},
};
constexpr Way kNeonDotWays[] = {
    {kGrouped, Layout::rows, 1, 8, false, Method::words},
    {kGrouped, Layout::rows, 9, kMany, false, Method::halves},
};

// A level's own ways, and the one (number in kLevels) whose ways follow them.
struct Level {
    const char* name;
    const Way* ways;
    int count;
    int rest;  // -1: none
};

enum : int { kScalarLevel, kAvx2Level, kAvxVnniLevel, kAvx512Level, kAvx512VnniLevel, kAvx512DotLevel, kAmxLevel, kEmulatedLevel, kNeonLevel,
             kNeonDotLevel, kNumLevels = 11 };

constexpr Level kLevels[] = {
    {"scalar", kScalarWays, 1, -1},
    {"avx2", kAvx2Ways, 4, kScalarLevel},
    {"avxvnni", kVnniWays, 4, kScalarLevel},
    {"avx512", nullptr, 0, kScalarLevel},
    {"avx512_vnni", kVnniWays, 4, kScalarLevel},
    {"avx512_bf16", kBF16Ways, 1, kAvx512VnniLevel},
    {"amx", kAmxWays, 2, kAvx512DotLevel},
    {"amx_emulated", kAmxWays, 2, kAvx512DotLevel},
    {"neon", kNeonWays, 1, kScalarLevel},
    {"neon_dotprod", kNeonDotWays, 2, kScalarLevel},
    {"neon_i8mm", kBF16Ways, 1, kNeonDotLevel},
};

MC_INLINE constexpr bool same_text(const char* a, const char* b) {
    for (; *a != 0 && *a == *b; ++a) ++b;
    return *a == *b;
}

// Number of a level in kLevels, or kNumLevels.
MC_INLINE constexpr int find_level(const char* name) {
    int i = 0;
    while (i < kNumLevels && !same_text(kLevels[i].name, name)) ++i;
    return i;
}

// What a choice hangs on.
struct Product {
    Kind kind;
    bool panels;
    i64 n;  // rows of x
    bool narrow;
};

MC_INLINE constexpr bool fits(const Way& way, const Product& p) {
    if ((way.kinds >> static_cast<int>(p.kind) & 1U) == 0 || p.n < way.first || p.n > way.last) return false;
    if (way.layout != Layout::any && (way.layout == Layout::panels) != p.panels) return false;
    return !way.narrow || p.narrow;
}

// The first way that fits, or null. Own: of those that are the level's own.
MC_INLINE constexpr const Way* find_own_way(int level, const Product& p) {
    for (int i = 0; i < kLevels[level].count; ++i) {
        if (fits(kLevels[level].ways[i], p)) return kLevels[level].ways + i;
    }
    return nullptr;
}

MC_INLINE constexpr const Way* find_way(int level, const Product& p) {
    const Way* way = nullptr;
    for (; level >= 0 && way == nullptr; level = kLevels[level].rest) way = find_own_way(level, p);
    return way;
}

// Numbers of rows of x at which a choice may change.
constexpr i64 kProbedRows[] = {1, 8, 9, 16, 17, 512};

// Calls see(product, way or null) for products with every number of rows at which a choice may change; OWN: ways of the level alone.
template <bool OWN, class See>
static constexpr void each_product(int level, Kind kind, See&& see) {
    const bool grouped = kKinds[static_cast<int>(kind)].group_multiple > 0;
    for (const i64 n : kProbedRows) {
        for (int i = 0; i < 4; ++i) {
            const Product p = {kind, i % 2 == 1, n, i / 2 == 1};
            if (p.panels && !grouped) continue;
            see(p, OWN ? find_own_way(level, p) : find_way(level, p));
        }
    }
}

// The methods, as bits, that ways of a level lead to for a format.
template <bool OWN>
static constexpr u32 methods_for(int level, Kind kind) {
    u32 found = 0;
    each_product<OWN>(level, kind, [&found](const Product&, const Way* way) {
        if (way != nullptr) found |= 1U << static_cast<int>(way->method);
    });
    return found;
}

// Whether a level takes weights of a format in panels, and whether it may round x to 8 bits.
MC_INLINE bool takes_panels(int level, Kind kind) {
    return kKinds[static_cast<int>(kind)].group_multiple > 0 && find_way(level, {kind, true, 1, false}) != nullptr;
}
MC_INLINE bool narrows(int level) {
    const Way* way = find_way(level, {Kind::int4, true, 1, true});
    return way != nullptr && way->narrow;
}

}  // namespace minicpm4
