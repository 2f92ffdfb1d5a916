// Many rows of x on ARM by products of bytes: kernels for linear/blocks.hpp.
//
// x becomes 16-bit integers q = 256 high + low with a scale for each row and depth block; high, low and the codes of
// grouped weights are signed bytes, whose products are summed in 32 bits: exact until a group's scale multiplies
// them. A unit multiplies kHalfTile rows of x by kHalfPanel weight rows, 16 columns at a time: DotUnit by
// dot products of four (dotprod), MatrixUnit by 2 x 8 times 8 x 2 matrices (i8mm). Included inside the namespace of the
// instruction set, with MC_HAS_BYTE_DOT only.

constexpr int kHalfTile = 4;   // x rows at once in registers
constexpr int kHalfPanel = 8;  // weight rows at once
constexpr int kHalfSums = kHalfTile * kHalfPanel / W;
constexpr i64 kHalfSteps = kBlockDepth / 16;

// One depth block of kHalfTile rows of x: for each 16 columns their upper and lower halves, in the unit's order.
struct alignas(64) HalfTile {
    i8 halves[kHalfSteps][2][16 * kHalfTile];
    float scale[kHalfTile];
    float sums[kMostSegments][kHalfTile];
};

// One depth block of kHalfPanel weight rows: for each 16 columns the codes, in the unit's order.
struct alignas(64) HalfPanel {
    i8 codes[kHalfSteps][16 * kHalfPanel];
    float scales[kMostSegments][kHalfPanel];
    float offsets[kMostSegments][kHalfPanel];
};

#if defined(MC_HAS_BYTE_MATRICES)
// Sum v of a matrix unit: rows 2a and 2a + 1 of x by weight rows 2b and 2b + 1, where v = 4a + b.
MC_INLINE void rows_of_matrices(const V* total, V (*rows)[2]) {
    MC_UNROLL
    for (int v = 0; v < kHalfSums; v += 2) {
        const float64x2_t left = vreinterpretq_f64_f32(total[v].v), right = vreinterpretq_f64_f32(total[v + 1].v);
        rows[v / 4 * 2][v % 4 / 2].v = vreinterpretq_f32_f64(vtrn1q_f64(left, right));
        rows[v / 4 * 2 + 1][v % 4 / 2].v = vreinterpretq_f32_f64(vtrn2q_f64(left, right));
    }
}

struct MatrixUnit {
    // 16 bytes of row j of x: two pieces of 8 bytes, the pairs of rows of a piece together.
    static void place_x(i8* to, i64 j, int8x16_t bytes) {
        vst1_s8(to + 8 * j, vget_low_s8(bytes));
        vst1_s8(to + 8 * (kHalfTile + j), vget_high_s8(bytes));
    }
    static void place_codes(i8* to, i64 i, int8x16_t bytes) {
        vst1_s8(to + 8 * i, vget_low_s8(bytes));
        vst1_s8(to + 8 * (kHalfPanel + i), vget_high_s8(bytes));
    }
    static void multiply(Ints* sum, const i8* x, const i8* w) {
        MC_UNROLL
        for (int piece = 0; piece < 2; ++piece) {
            int8x16_t right[kHalfPanel / 2];
            MC_UNROLL
            for (int b = 0; b < kHalfPanel / 2; ++b) right[b] = vld1q_s8(w + 8 * kHalfPanel * piece + 16 * b);
            MC_UNROLL
            for (int a = 0; a < kHalfTile / 2; ++a) {
                const int8x16_t left = vld1q_s8(x + 8 * kHalfTile * piece + 16 * a);
                MC_UNROLL
                for (int b = 0; b < kHalfPanel / 2; ++b) {
                    sum[4 * a + b].v = vmmlaq_s32(sum[4 * a + b].v, left, right[b]);
                }
            }
        }
    }
    static V scale(const float* scales, int v) {
        const float32x2_t two = vld1_f32(scales + 2 * (v % 4));
        return {vcombine_f32(two, two)};
    }
    // What rows of x have one of each, as lanes of sum v.
    static V of_x(const float* rows, int v) {
        const float* two = rows + v / 4 * 2;
        return {vcombine_f32(vdup_n_f32(two[0]), vdup_n_f32(two[1]))};
    }
    static void rows(const V* total, V (*to)[2]) { rows_of_matrices(total, to); }
};
using HalfUnit = MatrixUnit;
#else
// Sum v: row v / 2 of x by four weight rows.
struct DotUnit {
    static void place_x(i8* to, i64 j, int8x16_t bytes) { vst1q_s8(to + 16 * j, bytes); }
    // Fours of columns, those of all rows together.
    static void place_codes(i8* to, i64 i, int8x16_t bytes) {
        i32 fours[4];
        vst1q_s32(fours, vreinterpretq_s32_s8(bytes));
        for (int four = 0; four < 4; ++four) memcpy(to + 4 * (kHalfPanel * four + i), fours + four, 4);
    }
    template <int FOUR>
    static void multiply_four(Ints* sum, const int8x16_t* left, const i8* w) {
        const int8x16_t first = vld1q_s8(w + 4 * kHalfPanel * FOUR), second = vld1q_s8(w + 4 * kHalfPanel * FOUR + 16);
        MC_UNROLL
        for (int a = 0; a < kHalfTile; ++a) {
            sum[2 * a].v = vdotq_laneq_s32(sum[2 * a].v, first, left[a], FOUR);
            sum[2 * a + 1].v = vdotq_laneq_s32(sum[2 * a + 1].v, second, left[a], FOUR);
        }
        if constexpr (FOUR < 3) multiply_four<FOUR + 1>(sum, left, w);
    }
    static void multiply(Ints* sum, const i8* x, const i8* w) {
        int8x16_t left[kHalfTile];
        MC_UNROLL
        for (int a = 0; a < kHalfTile; ++a) left[a] = vld1q_s8(x + 16 * a);
        multiply_four<0>(sum, left, w);
    }
    static V scale(const float* scales, int v) { return load(scales + W * (v % 2)); }
    static V of_x(const float* rows, int v) { return set1(rows[v / 2]); }
    static void rows(const V* total, V (*to)[2]) {
        MC_UNROLL
        for (int v = 0; v < kHalfSums; ++v) to[v / 2][v % 2] = total[v];
    }
};
using HalfUnit = DotUnit;
#endif

// Columns [k, end) of weight row r as row i of a panel: codes without their implied offset.
template <class F, class U>
static void unpack_codes(const Matrix& m, i64 r, i64 k, i64 end, i64 i, HalfPanel* panel) {
    constexpr int kParts = kCodeParts<F>;
    const int8x16_t bias = code_bias<F>(m);
    const u8* p = F::row(m, r) + k / kParts;
    for (i64 step = 0; 16 * step < end - k; step += kParts, p += 16) {
        const uint8x16_t bytes = vld1q_u8(p);
        MC_UNROLL
        for (int part = 0; part < kParts; ++part) U::place_codes(panel->codes[step + part], i, sixteen_codes<F>(bytes, part, bias));
    }
}

template <class U, bool OFFSETS>
static void tile_halves(const Segments& s, const HalfTile& x, const HalfPanel& w, const BlockOutput& out) {
    prefetch_output<kHalfTile, kHalfPanel>(out);
    V total[kHalfSums];
    MC_UNROLL
    for (int v = 0; v < kHalfSums; ++v) total[v] = zero();
    i64 t = 0;
    for (int segment = 0; segment < s.count; ++segment) {
        Ints high[kHalfSums], low[kHalfSums];
        MC_UNROLL
        for (int v = 0; v < kHalfSums; ++v) high[v] = low[v] = no_ints();
        for (; 16 * t < s.stop[segment]; ++t) {
            U::multiply(high, x.halves[t][0], w.codes[t]);
            U::multiply(low, x.halves[t][1], w.codes[t]);
        }
        MC_UNROLL
        for (int v = 0; v < kHalfSums; ++v) {
            total[v] = fma(to_floats(join_halves(high[v], low[v])), U::scale(w.scales[segment], v), total[v]);
            if (OFFSETS) total[v] = fma(U::of_x(x.sums[segment], v), U::scale(w.offsets[segment], v), total[v]);
        }
    }
    V rows[kHalfTile][2];
    U::rows(total, rows);
    finish_tile<kHalfTile, 2>(x, out, rows);
}

template <class U>
struct HalfKernel {
    using XTile = HalfTile;
    using Panel = HalfPanel;
    static constexpr i64 kRows = kHalfTile;
    static constexpr i64 kPanelRows = kHalfPanel;

    // x rows [row, row + kRows), those from `last` on taken as zeros, at depth k.
    static void pack(const LinearArgs& args, i64 row, i64 last, i64 k, HalfTile* to) {
        const Segments s = find_segments(args.w, k);
        if (row + kRows > last) memset(to, 0, sizeof *to);
        pack_scaled(args, row, kRows, last, s, to, [&](i64 j, const float* x, float* sums) {
            return quantise_depth(x, k, depth_end(args.w, k), s, sums, [to, j](i64 at, const Ints* q) {
                i8 high[16], low[16];
                store_halves(high, low, q);
                U::place_x(to->halves[at / 16][0], j, vld1q_s8(high));
                U::place_x(to->halves[at / 16][1], j, vld1q_s8(low));
            });
        });
    }

    // Weight rows [r, r + rows) at depth k, and zeros up to kPanelRows.
    template <class F>
    static void unpack(const Matrix& m, i64 r, i64 rows, i64 k, const Segments& s, HalfPanel* panel) {
        if (rows < kPanelRows) memset(panel, 0, sizeof *panel);
        for (i64 i = 0; i < rows; ++i) unpack_codes<F, U>(m, r + i, k, depth_end(m, k), i, panel);
        copy_groups(m, r, rows, s, panel->scales[0], panel->offsets[0], kPanelRows);
    }

    static void multiply(const Segments& s, const HalfTile& x, const HalfPanel& w, const BlockOutput& out) {
        if (out.args->w.offsets != nullptr) {
            tile_halves<U, true>(s, x, w, out);
        } else {
            tile_halves<U, false>(s, x, w, out);
        }
    }
};

template <>
struct Multiply<Method::halves> {
    template <class F>
    static void run(Pool& pool, const SharedProducts& all) {
        linear_blocks<F, HalfKernel<HalfUnit>>(pool, all);
    }
};
