// y = x W^T for few rows of x and weights in panels, by dot products of bytes (VNNI).
//
// Lanes are the 16 rows of a panel, so a panel is one stream of codes and one of scales, x is broadcast from
// memory by the product itself, and no lanes are summed at the end. Each unit of x (32 to 128 columns of one group)
// becomes 16-bit integers q = 256 hi + lo with a scale, as in linear_bytes.hpp: all but that rounding, to 1/65024 of the
// unit's largest value, is exact until a unit's sum is scaled. Included inside the namespace of the instruction
// set, with MC_HAS_VNNI only.

constexpr int kPanelX = 8;          // x rows at once
constexpr i64 kFewPanelRows = 16;   // x rows at most
constexpr i64 kScalesAhead = 1024;  // bytes

// Columns that four bytes of a row's codes hold.
template <class F>
struct PanelStep {
    static constexpr i64 value = 4 * Bytes<F>::kParts;
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

MC_INLINE __m512i add_broadcast_products(__m512i sum, __m512i codes, const u8* four) {
#if defined(__GNUC__)
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(codes), "m"(*reinterpret_cast<const u32*>(four)));
    return sum;
#else
    i32 word;
    memcpy(&word, four, sizeof word);
    return _mm512_dpbusd_epi32(sum, codes, _mm512_set1_epi32(word));
#endif
}

// One unit of x to hi and lo, or in 8 bits (lo null) to hi alone, its shift and its scale; returns the sum of its
// quantised values.
MC_INLINE float quantise_panel_unit(const float* x, i64 unit, int bias, u8* hi, u8* lo, i32* shift, float* scales) {
    // 32512 = 256 * 127: the largest value becomes hi = 127, lo = 0.
    const float scale = unit_scale(x, unit) * (lo != nullptr ? 1.0F : 256.0F);
    const __m512 inverse = _mm512_set1_ps(inverse_scale(scale));
    __m512i sum = _mm512_setzero_si512();
    for (i64 k = 0; k < unit; k += 16) {
        const __m512 real = _mm512_mul_ps(_mm512_loadu_ps(x + k), inverse);
        // A value that is not finite times 0 is NaN, which would become the least integer.
        const __mmask16 good = _mm512_cmp_ps_mask(real, real, _CMP_ORD_Q);
        const __m512i q = _mm512_maskz_cvtps_epi32(good, real);
        __m512i high = q;
        if (lo != nullptr) {
            high = _mm512_srai_epi32(_mm512_add_epi32(q, _mm512_set1_epi32(128)), 8);
            _mm_storeu_si128(reinterpret_cast<__m128i*>(lo + k), _mm512_cvtepi32_epi8(q));
        }
        _mm_storeu_si128(reinterpret_cast<__m128i*>(hi + k), _mm512_cvtepi32_epi8(high));
        sum = _mm512_add_epi32(sum, q);
    }
    const i32 total = _mm512_reduce_add_epi32(sum);
    *shift = -bias * total;
    *scales = scale;
    return scale * static_cast<float>(total);
}

// What codes exceed weights by: int4 with offsets is as stored; int8 is shifted to be unsigned.
template <class F>
MC_INLINE int panel_bias(const Matrix& m) {
    return m.kind == Kind::int4 && m.offsets != nullptr ? 0 : Bytes<F>::kBias;
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

// Scales or offsets of the 16 rows of a panel: vector number i.
MC_INLINE __m512 panel_floats(const void* data, bool half, i64 i) {
    if (half) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(static_cast<const u16*>(data) + i * kPanelRows)));
    }
    return _mm512_loadu_ps(static_cast<const float*>(data) + i * kPanelRows);
}

// Adds the products of 32 columns from column k on; codes: those of the panel there. In 8 bits there is no low half.
template <class F, int NX, bool BYTES>
MC_INLINE void dot_panel_step(const u8* codes, const PanelX& x, i64 first, i64 k, __m512i* high, __m512i* low) {
    constexpr i64 kStep = PanelStep<F>::value;
    MC_UNROLL
    for (i64 c = 0; c < 32 / kStep; ++c) {
        const u8* p = codes + c * 64;
        _mm_prefetch(reinterpret_cast<const char*>(p) + kAhead, _MM_HINT_T1);
        __m512i raw = _mm512_loadu_si512(p);
        MC_KEEP(raw);
        __m512i w[Bytes<F>::kParts];
        Bytes<F>::split(w, raw);
        MC_UNROLL
        for (int part = 0; part < Bytes<F>::kParts; ++part) {
            const u8* at = x.rows + first * x.pitch + k + c * kStep + 4 * part;
            MC_UNROLL
            for (int j = 0; j < NX; ++j) {
                high[j] = add_broadcast_products(high[j], w[part], at + j * x.pitch);
                if (!BYTES) low[j] = add_broadcast_products(low[j], w[part], at + j * x.pitch + x.cols);
            }
        }
    }
}

// total[j] = the 16 products of panel p and x row first + j.
template <class F, int NX, bool BYTES>
MC_INLINE void dot_panel(const Matrix& m, i64 p, const PanelX& x, i64 first, __m512* total) {
    const i64 unit = panel_unit(m), groups = m.cols / m.group, per_group = m.group / unit;
    const i64 step_bytes = 32 / PanelStep<F>::value * 64;
    const u8* codes = static_cast<const u8*>(m.codes) + p * (m.cols / 32) * step_bytes;
    for (int j = 0; j < NX; ++j) total[j] = _mm512_setzero_ps();
    for (i64 u = 0; u < x.units; ++u) {
        const i64 group = p * groups + u / per_group;
        __m512i high[NX], low[NX];
        MC_UNROLL
        for (int j = 0; j < NX; ++j) {
            low[j] = _mm512_set1_epi32(x.shifts(first + j)[u]);
            if (BYTES) {
                high[j] = low[j];
            } else {
                MC_ZERO(high[j]);
            }
        }
        for (i64 k = u * unit; k < (u + 1) * unit; k += 32, codes += step_bytes) {
            dot_panel_step<F, NX, BYTES>(codes, x, first, k, high, low);
        }
        _mm_prefetch(static_cast<const char*>(m.scales) + group * kPanelRows * (m.half_scales ? 2 : 4) + kScalesAhead,
                     _MM_HINT_T0);
        const __m512 scale = panel_floats(m.scales, m.half_scales, group);
        MC_UNROLL
        for (int j = 0; j < NX; ++j) {
            const __m512i sum = BYTES ? high[j] : _mm512_add_epi32(_mm512_slli_epi32(high[j], 8), low[j]);
            const __m512 factor = _mm512_mul_ps(scale, _mm512_set1_ps(x.scales(first + j)[u]));
            total[j] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), factor, total[j]);
        }
    }
    for (i64 g = 0; m.offsets != nullptr && g < groups; ++g) {
        const __m512 offset = panel_floats(m.offsets, m.half_offsets, p * groups + g);
        MC_UNROLL
        for (int j = 0; j < NX; ++j) {
            total[j] = _mm512_fmadd_ps(_mm512_set1_ps(x.sums[(first + j) * x.groups + g]), offset, total[j]);
        }
    }
}

// Puts 16 products of an x row to y, those beyond the last weight row left out.
MC_INLINE void finish_panel(const LinearArgs& args, i64 row, i64 column, __m512 value) {
    const i64 left = args.w.rows - column;
    const __mmask16 mask = lanes(left < kPanelRows ? static_cast<int>(left) : kPanelRows);
    float* y = args.y + row * args.w.rows + column;
    if (args.bias != nullptr) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, args.bias + column));
    if (args.add) value = _mm512_fmadd_ps(_mm512_set1_ps(args.scale), value, _mm512_maskz_loadu_ps(mask, y));
    _mm512_mask_storeu_ps(y, mask, value);
}

template <class F, int NX>
static void finish_panel_rows(const LinearArgs& args, i64 p, const PanelX& x, i64 first) {
    __m512 total[NX];
    if (args.bytes) {
        dot_panel<F, NX, true>(args.w, p, x, first, total);
    } else {
        dot_panel<F, NX, false>(args.w, p, x, first, total);
    }
    for (int j = 0; j < NX; ++j) finish_panel(args, first + j, p * kPanelRows, total[j]);
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

MC_INLINE i64 panels_of(const Matrix& m) { return (m.rows + kPanelRows - 1) / kPanelRows; }

// Products of a few x rows with every panel.
template <class F>
static void few_panel_rows(Pool& pool, const SharedProducts& all, const PanelX& x) {
    i64 panels = 0;
    for (i64 i = 0; i < all.count; ++i) panels += panels_of(all.args[i].w);
    auto multiply = [&](i64 begin, i64 end, int) {
        for (i64 t = begin; t < end; ++t) {
            const LinearArgs* own = all.args;
            i64 p = t;
            for (; p >= panels_of(own->w); ++own) p -= panels_of(own->w);
            panel_rows<F>(*own, p, x);
        }
    };
    constexpr i64 kWeightsPerTask = 131072;
    parallel(pool, panels, kWeightsPerTask / (kPanelRows * all.args->n * x.cols) + 1, multiply);
}

#include "linear_int8.hpp"

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
    if (args.n <= kFewPanelRows) return few_panel_rows<F>(pool, all, x);
    linear_int8<F>(pool, all, x);
}

// Row r of a matrix in panels, times `scale`, to out: one token's embedding.
template <class F>
static void unpack_panel_row(const Matrix& m, i64 r, float scale, float* out) {
    constexpr i64 kParts = Bytes<F>::kParts, kStep = PanelStep<F>::value;
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
