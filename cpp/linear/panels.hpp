// y = x W^T for few rows of x and weights in panels (formats/quant.py), by products of bytes.
//
// Lanes are weight rows, so a panel is one stream of codes and one of scales, x is broadcast from memory, and no lanes
// are summed at the end. Each unit of x (32 to 128 columns of one group) becomes 16-bit integers q = 256 hi + lo with
// a scale, hi and lo signed bytes: all but that rounding, to 1/65024 of the unit's largest value, is exact until a
// unit's sum is scaled. In 8 bits, a choice (activations = "int8") that takes VNNI, there is hi alone. The products are in
// linear/panels_avx512.hpp and linear/panels_avx2.hpp. Included inside the namespace of the instruction set, with MC_HAS_PANELS only.

constexpr i64 kFewPanelRows = 16;   // of x; more go to linear/int8.hpp
constexpr i64 kScalesAhead = 1024;  // bytes

// How many codes a byte holds, and what they exceed weights by as unsigned bytes.
template <class F>
struct CodeBytes;
template <>
struct CodeBytes<FormatInt8> {
    static constexpr i64 kParts = 1;
    static constexpr int kBias = 128;
};
template <>
struct CodeBytes<FormatInt4> {
    static constexpr i64 kParts = 2;
    static constexpr int kBias = 8;
};
template <>
struct CodeBytes<FormatTernary> {
    static constexpr i64 kParts = 4;
    static constexpr int kBias = 1;
};

// Columns that four bytes of a row's codes hold.
template <class F>
struct PanelStep {
    static constexpr i64 value = 4 * CodeBytes<F>::kParts;
};

// Columns that share a scale of x.
MC_INLINE i64 panel_unit(const Matrix& m) { return m.group % 128 == 0 ? 128 : m.group % 64 == 0 ? 64 : 32; }

// x rows, `pitch` bytes apart: hi (cols), lo (cols, in 16 bits only), then of each unit -bias times the sum of q as
// i32 and the scale as float; sums (rows, groups) with offsets only.
struct PanelX {
    const u8* rows;
    i64 pitch;
    i64 cols;
    i64 bytes;  // of codes: cols or 2 cols
    i64 units;
    const float* sums;
    i64 groups;

    const i32* shifts(i64 j) const { return reinterpret_cast<const i32*>(rows + j * pitch + bytes); }
    const float* scales(i64 j) const { return reinterpret_cast<const float*>(shifts(j) + units); }
};

// What codes exceed weights by: int4 with offsets is as stored; int8 is shifted to be unsigned.
template <class F>
MC_INLINE int panel_bias(const Matrix& m) {
    return m.kind == Kind::int4 && m.offsets != nullptr ? 0 : CodeBytes<F>::kBias;
}

#if defined(MC_HAS_VNNI)
#include "linear/panels_avx512.hpp"
#else
#include "linear/panels_avx2.hpp"
#endif

// One unit of x to hi and lo, or in 8 bits (lo null) to hi alone, its shift and its scale; returns the sum of its
// quantised values times that.
MC_INLINE float quantise_panel_unit(const float* x, i64 unit, int bias, u8* hi, u8* lo, i32* shift, float* scales) {
    // 32512 = 256 * 127: the largest value becomes hi = 127, lo = 0.
    const float scale = int16_scale(x, unit) * (lo != nullptr ? 1.0F : 256.0F);
    const float sum = quantise_x(x, unit, inverse_scale(scale), [hi, lo](i64 k, const Ints* q) {
        if (lo != nullptr) {
            store_halves(hi + k, lo + k, q);
        } else {
            store_bytes(hi + k, q);
        }
    });
    *shift = -bias * static_cast<i32>(sum);
    *scales = scale;
    return scale * sum;
}

template <class F>
static void quantise_panel_row(const Matrix& m, const float* x, const PanelX& layout, u8* to, float* sums) {
    const i64 unit = panel_unit(m), per_group = m.group / unit;
    i32* shifts = reinterpret_cast<i32*>(to + layout.bytes);
    float* scales = reinterpret_cast<float*>(shifts + layout.units);
    for (i64 u = 0; u < layout.units; ++u) {
        const i64 k = u * unit;
        u8* low = layout.bytes > m.cols ? to + m.cols + k : nullptr;
        const float sum =
            quantise_panel_unit(x + k, unit, panel_bias<F>(m), to + k, low, shifts + u, scales + u);
        if (sums != nullptr) sums[u / per_group] = (u % per_group == 0 ? 0.0F : sums[u / per_group]) + sum;
    }
}

// Panel p by all x rows: those after the first kPanelX find it in a near cache.
template <class F>
static void panel_rows(const LinearArgs& args, i64 p, const PanelX& x) {
    i64 j = 0;
    for (; args.n - j >= kPanelX; j += kPanelX) finish_panel_rows<F, kPanelX>(args, p, x, j);
    for (; args.n - j >= 4; j += 4) finish_panel_rows<F, 4>(args, p, x, j);
    if (args.n - j == 3) finish_panel_rows<F, 3>(args, p, x, j);
    if (args.n - j == 2) finish_panel_rows<F, 2>(args, p, x, j);
    if (args.n - j == 1) finish_panel_rows<F, 1>(args, p, x, j);
}

// Products of a few x rows with every panel.
template <class F>
static void few_panel_rows(Pool& pool, const SharedProducts& all, const PanelX& x) {
    auto multiply = [&](i64 begin, i64 end, int) {
        for (i64 t = begin; t < end; ++t) {
            const ProductTask task = find_task(all, kPanelRows, t);
            panel_rows<F>(*task.args, task.r / kPanelRows, x);
        }
    };
    constexpr i64 kWeightsPerTask = 131072;
    const i64 grain = kWeightsPerTask / (kPanelRows * all.args->n * x.cols) + 1;
    parallel(pool, count_tasks(all, kPanelRows), grain, multiply);
}

// x is quantised once for all products.
template <class F>
static void linear_panels(Pool& pool, const SharedProducts& all) {
    const LinearArgs& args = *all.args;
    const Matrix& m = args.w;
    PanelX x = {};
    x.cols = m.cols;
    x.bytes = args.bytes ? m.cols : 2 * m.cols;
    x.units = m.cols / panel_unit(m);
    x.groups = m.offsets != nullptr ? m.cols / m.group : 0;
    // A line more than a row takes: rows a multiple of 4096 bytes apart would fall on the same cache sets.
    x.pitch = (x.bytes + 8 * x.units + 63) / 64 * 64 + 64;
    pool.reserve_shared(args.n * (x.pitch + x.groups * static_cast<i64>(sizeof(float))));
    u8* rows = static_cast<u8*>(pool.shared());
    float* sums = reinterpret_cast<float*>(rows + args.n * x.pitch);
    auto quantise = [&](i64 begin, i64 end, int) {
        for (i64 j = begin; j < end; ++j) {
            quantise_panel_row<F>(m, args.x + j * m.cols, x, rows + j * x.pitch,
                                  x.groups > 0 ? sums + j * x.groups : nullptr);
        }
    };
    parallel(pool, args.n, 4, quantise);
    x.rows = rows;
    x.sums = sums;
#if defined(MC_HAS_VNNI)
    if (args.n > kFewPanelRows) return many_panel_rows<F>(pool, all, x);
#endif
    few_panel_rows<F>(pool, all, x);
}

template <>
struct Multiply<Method::panels> {
    template <class F>
    static void run(Pool& pool, const SharedProducts& all) {
        linear_panels<F>(pool, all);
    }
};

template <>
struct Multiply<Method::narrow_panels> : Multiply<Method::panels> {};  // args.bytes tells them apart

// Row r of a matrix in panels, times `scale`, to out: one token's embedding.
template <class F>
static void unpack_panel_row(const Matrix& m, i64 r, float scale, float* out) {
    constexpr i64 kParts = CodeBytes<F>::kParts, kStep = PanelStep<F>::value;
    constexpr int kBits = 8 / static_cast<int>(kParts);
    const i64 groups = m.cols / m.group, p = r / kPanelRows, lane = r % kPanelRows;
    const u8* codes = static_cast<const u8*>(m.codes) + p * (m.cols / kStep) * 64 + 4 * lane;
    const int bias = panel_bias<F>(m);
    for (i64 k = 0; k < m.cols; k += 4) {
        const u8* four = codes + k / kStep * 64;
        const int shift = static_cast<int>(k % kStep / 4) * kBits;
        const i64 at = (p * groups + k / m.group) * kPanelRows + lane;
        const float s = float_at(m.scales, m.half_scales, at) * scale;
        const float o = m.offsets != nullptr ? float_at(m.offsets, m.half_offsets, at) * scale : 0.0F;
        for (i64 b = 0; b < 4; ++b) {
            const int code = kParts == 1 ? static_cast<i8>(four[b]) : (four[b] >> shift & ((1 << kBits) - 1)) - bias;
            out[k + b] = static_cast<float>(code) * s + o;
        }
    }
}
