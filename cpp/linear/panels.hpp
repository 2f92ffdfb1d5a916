// y = x W^T for few rows of x and weights in panels (formats/quant.py), by products of small integers.
//
// Lanes are weight rows, so a panel is one stream of codes and one of scales, x is broadcast from memory, and no lanes
// are summed at the end. Each block of x (linear/quantise.hpp) becomes 16-bit integers q with a scale, as words, or as q = 256 hi + lo
// with hi and lo signed bytes: all but that rounding, to 1/65024 of the block's largest value, is exact until a piece's sum is
// scaled. In 8 bits, a choice (activations = "int8"), there is hi alone, and blocks are shorter. The products are in
// linear/panel_dots.hpp. Included inside the namespace of the instruction set, with MC_HAS_PANELS only.

constexpr i64 kFewPanelRows = 16;   // of x in 8 bits; more go to linear/int8.hpp

// What x is made of. Bytes are multiplied without unpacking codes any further, words leave nothing to be put together: for one
// row of x and for several.
enum class XForm { halves, high, words };

// How many codes a byte holds, and what they exceed weights by.
template <class F>
struct CodeBytes;
template <>
struct CodeBytes<FormatInt8> {
    static constexpr i64 kParts = 1;
    static constexpr int kBias = 0;
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

template <Kind KIND, int LOW, int HIGH, i64 UNIT, int BIAS>
struct CodeBytes<PlaneFormat<KIND, LOW, HIGH, UNIT, BIAS>> {
    static constexpr i64 kParts = 0;  // see linear/plane_panels.hpp
    static constexpr int kBias = BIAS;
};

// Columns that four bytes of a row's codes hold.
template <class F>
struct PanelStep {
    static constexpr i64 value = 4 * CodeBytes<F>::kParts;
};

// Bytes of codes that `columns` of a panel take.
template <class F>
MC_INLINE constexpr i64 panel_bytes(i64 columns) {
    return kPanelRows * kKinds[static_cast<int>(F::KIND)].row_bytes(columns);
}

// Whether a piece may end with 16 columns: groups are multiples of those only.
template <class F>
constexpr bool has_half_spans = kKinds[static_cast<int>(F::KIND)].group_multiple % 32 != 0;

// Columns that share a scale of x in 8 bits: of one group.
MC_INLINE i64 panel_unit(const Matrix& m) {
    return m.group % 128 == 0 ? 128 : m.group % 64 == 0 ? 64 : m.group % 32 == 0 ? 32 : 16;
}

// A piece of columns (linear/quantise.hpp).
struct Piece {
    u8 sixteens;     // of columns
    bool odd;        // sixteens before it
    bool group_ends;
    bool block_ends;
};

// x rows, `pitch` bytes apart: hi (cols) and lo (cols), or hi alone, or words (of each four columns the first and third, then
// the second and fourth); then of each piece -bias times the sum of q as i32 and with offsets that sum as float, then the scale of
// each block.
struct PanelX {
    const u8* rows;
    XForm form;
    i64 pitch;
    i64 cols;
    i64 bytes;  // of codes: cols or 2 cols
    i64 block;  // columns that share a scale
    const Piece* pieces;
    i64 most;       // pieces at most
    i64 sums_at;    // from shifts on
    i64 scales_at;

    const i32* shifts(i64 j) const { return reinterpret_cast<const i32*>(rows + j * pitch + bytes); }
    const float* sums(i64 j) const { return reinterpret_cast<const float*>(shifts(j)) + sums_at; }
    const float* scales(i64 j) const { return reinterpret_cast<const float*>(shifts(j)) + scales_at; }
};

MC_INLINE PanelX panel_x(const Matrix& m, XForm form) {
    const bool narrow = form == XForm::high;
    PanelX x = {};
    x.form = form;
    x.cols = m.cols;
    x.bytes = narrow ? m.cols : 2 * m.cols;
    x.block = narrow ? panel_unit(m) : kBlockDepth;
    const i64 blocks = (m.cols + x.block - 1) / x.block;
    x.most = blocks + m.cols / m.group;
    x.sums_at = m.offsets != nullptr ? x.most : 0;
    x.scales_at = x.most + x.sums_at;
    // A line more than a row takes: rows a multiple of 4096 bytes apart would fall on the same cache sets.
    x.pitch = (x.bytes + 4 * (x.scales_at + blocks) + 63) / 64 * 64 + 64;
    return x;
}

static void cut_pieces(const Matrix& m, i64 block, Piece* to) {
    i64 group_end = m.group, block_end = block;
    for (i64 k = 0; k < m.cols; ++to) {
        if (block_end > m.cols) block_end = m.cols;
        const i64 end = group_end < block_end ? group_end : block_end;
        *to = {static_cast<u8>((end - k) / 16), k / 16 % 2 == 1, end == group_end, end == block_end};
        if (end == group_end) group_end += m.group;
        if (end == block_end) block_end += block;
        k = end;
    }
}

// What codes exceed weights by: with offsets they are as stored.
template <class F>
MC_INLINE int panel_bias(const Matrix& m) {
    return m.offsets != nullptr ? 0 : CodeBytes<F>::kBias;
}

#include "linear/plane_panels.hpp"

#include "linear/panel_dots.hpp"

#include "linear/int8.hpp"

// Columns [k, k + count) of x to hi and lo, to hi alone, or to words; returns the sum of their integers.
MC_INLINE float quantise_panel_piece(const float* x, i64 k, i64 count, float inverse, const PanelX& layout, u8* to) {
    u8 *hi = to + k, *lo = hi + layout.cols, *words = to + 2 * k;
    switch (layout.form) {
        case XForm::words:
            return quantise_x(x + k, count, inverse, [words](i64 at, const Ints* q) { store_crossed(words + 2 * at, q); });
        case XForm::high:
            return quantise_x(x + k, count, inverse, [hi](i64 at, const Ints* q) { store_bytes(hi + at, q); });
        default:
            return quantise_x(x + k, count, inverse, [hi, lo](i64 at, const Ints* q) { store_halves(hi + at, lo + at, q); });
    }
}

template <class F>
static void quantise_panel_row(const Matrix& m, const float* x, const PanelX& layout, u8* to) {
    const bool narrow = layout.form == XForm::high;
    // Codes of 8 bits meet bytes of x as unsigned ones.
    const int bias = F::KIND == Kind::int8 && layout.form != XForm::words ? 128 : panel_bias<F>(m);
    i32* shifts = reinterpret_cast<i32*>(to + layout.bytes);
    float* sums = reinterpret_cast<float*>(shifts) + layout.sums_at;
    float* scales = reinterpret_cast<float*>(shifts) + layout.scales_at;
    const Piece* piece = layout.pieces;
    for (i64 k = 0; k < m.cols;) {
        const i64 left = m.cols - k, size = left < layout.block ? left : layout.block;
        // 32512 = 256 * 127: the largest value becomes hi = 127, lo = 0.
        const float scale = int16_scale(x + k, size) * (narrow ? 256.0F : 1.0F);
        *scales++ = scale;
        do {
            const float sum = quantise_panel_piece(x, k, 16 * piece->sixteens, inverse_scale(scale), layout, to);
            *shifts++ = -bias * static_cast<i32>(sum);
            if (layout.sums_at > 0) *sums++ = sum;
            k += 16 * piece->sixteens;
        } while (!piece++->block_ends);
    }
}

// Of panel p and COUNT x rows from `first` on.
template <class F, int COUNT, XForm FORM>
static void finish_panel_rows(const LinearArgs& args, i64 p, const PanelX& x, i64 first) {
    V total[kPanelRows / W][COUNT];
    dot_panel<F, COUNT, FORM>(args.w, p, x, first, total);
    for (int part = 0; part < kPanelRows / W; ++part) {
        for (int j = 0; j < COUNT; ++j) finish_lanes(args, first + j, p * kPanelRows + part * W, total[part][j]);
    }
}

template <class F, XForm FORM, int MOST>
static void panel_rows_at_once(const LinearArgs& args, i64 p, const PanelX& x, i64 first, i64 count) {
    if constexpr (MOST >= least_at_once<F, FORM>()) {
        if (count == MOST) return finish_panel_rows<F, MOST, FORM>(args, p, x, first);
        panel_rows_at_once<F, FORM, MOST - 1>(args, p, x, first, count);
    }
}

// Panel p by all x rows, in shares that differ by one row at most: those after the first find it in a near cache.
template <class F, XForm FORM>
static void panel_rows(const LinearArgs& args, i64 p, const PanelX& x) {
    constexpr int kMost = rows_at_once<F, FORM>();
    for (i64 shares = (args.n + kMost - 1) / kMost, j = 0; shares > 0; --shares) {
        const i64 count = (args.n - j + shares - 1) / shares;
        panel_rows_at_once<F, FORM, kMost>(args, p, x, j, count);
        j += count;
    }
}

// Products of a few x rows with every panel.
template <class F, XForm FORM>
static void few_panel_rows(Pool& pool, const SharedProducts& all, const PanelX& x) {
    auto multiply = [&](i64 begin, i64 end, int) {
        for (i64 t = begin; t < end; ++t) {
            const ProductTask task = find_task(all, kPanelRows, t);
            panel_rows<F, FORM>(*task.args, task.r / kPanelRows, x);
        }
    };
    constexpr i64 kWeightsPerTask = 131072;
    const i64 grain = kWeightsPerTask / (kPanelRows * all.args->n * x.cols) + 1;
    parallel(pool, count_tasks(all, kPanelRows), grain, multiply);
}

// x is quantised once for all products.
template <class F, XForm FORM>
static void linear_panels(Pool& pool, const SharedProducts& all) {
    const LinearArgs& args = *all.args;
    const Matrix& m = args.w;
    PanelX x = panel_x(m, FORM);
    pool.reserve_shared(args.n * x.pitch + x.most * static_cast<i64>(sizeof(Piece)));
    u8* rows = static_cast<u8*>(pool.shared());
    Piece* pieces = reinterpret_cast<Piece*>(rows + args.n * x.pitch);
    x.rows = rows;
    x.pieces = pieces;
    auto cut = [&](i64, i64, int) { cut_pieces(m, x.block, pieces); };
    parallel(pool, 1, 1, cut);
    auto quantise = [&](i64 begin, i64 end, int) {
        for (i64 j = begin; j < end; ++j) quantise_panel_row<F>(m, args.x + j * m.cols, x, rows + j * x.pitch);
    };
    parallel(pool, args.n, 4, quantise);
    if constexpr (FORM == XForm::high) {
        if (args.n > kFewPanelRows) return many_panel_rows<F>(pool, all, x);
    }
    few_panel_rows<F, FORM>(pool, all, x);
}

template <>
struct Multiply<Method::panels> {
    template <class F>
    static void run(Pool& pool, const SharedProducts& all) {
        if constexpr (least_words<F> > 1) {
            if (all.args->n < least_words<F>) return linear_panels<F, XForm::halves>(pool, all);
        }
        if constexpr (least_words<F> <= kFewPanelRows) linear_panels<F, XForm::words>(pool, all);
    }
};

template <>
struct Multiply<Method::narrow_panels> {
    template <class F>
    static void run(Pool& pool, const SharedProducts& all) {
        linear_panels<F, XForm::high>(pool, all);
    }
};

// The number that the code in column k of a panel's row `lane` stands for.
template <class F>
MC_INLINE int code_in_panel(const u8* panel, i64 lane, i64 k, int bias) {
    if constexpr (is_planes<F>) {
        return panel_code<F>(panel, lane, k) - bias;
    } else {
        constexpr i64 kParts = CodeBytes<F>::kParts, kStep = PanelStep<F>::value;
        constexpr int kBits = 8 / static_cast<int>(kParts);
        const u8 byte = panel[k / kStep * 64 + 4 * lane + k % 4];
        if (kParts == 1) return static_cast<i8>(byte);
        return (byte >> k % kStep / 4 * kBits & ((1 << kBits) - 1)) - bias;
    }
}

// Row r of a matrix in panels, times `scale`, to out: one token's embedding.
template <class F>
static void unpack_panel_row(const Matrix& m, i64 r, float scale, float* out) {
    const i64 groups = m.cols / m.group, p = r / kPanelRows, lane = r % kPanelRows;
    const u8* codes = static_cast<const u8*>(m.codes) + p * panel_bytes<F>(m.cols);
    const int bias = panel_bias<F>(m);
    for (i64 k = 0; k < m.cols; k += 4) {
        const i64 at = p * groups + k / m.group;
        const float s = panel_float_at(scales_of(m), at, lane) * scale;
        const float o = m.offsets != nullptr ? panel_float_at(offsets_of(m), at, lane) * scale : 0.0F;
        for (i64 b = 0; b < 4; ++b) out[k + b] = static_cast<float>(code_in_panel<F>(codes, lane, k + b, bias)) * s + o;
    }
}
