// Products with panels by VNNI: vpdpbusd multiplies four codes of each of 16 rows by four bytes of x, broadcast by
// the instruction itself. For linear/panels.hpp.

constexpr int kPanelX = 8;          // x rows at once

template <class F>
constexpr bool words_of_x = false;
MC_INLINE void store_x_words(u8*, const Ints*) {}

// Prefetched this far ahead, to the second level: the first has too few misses in flight to fill a core's
// share of the bandwidth (measured: 9 against 16 GB/s).
constexpr i64 kAhead = 16384;

// kParts vectors of unsigned bytes from 64 bytes of codes; kBias is what they exceed weights by.
template <class F>
struct Bytes;

template <>
struct Bytes<FormatInt8> {
    static constexpr int kParts = 1;
    static constexpr int kBias = 128;
    static void split(__m512i* w, __m512i codes) { w[0] = _mm512_xor_si512(codes, _mm512_set1_epi8(-128)); }
};

template <>
struct Bytes<FormatInt4> {
    static constexpr int kParts = 2;
    static constexpr int kBias = 8;
    static void split(__m512i* w, __m512i codes) {
        const __m512i mask = _mm512_set1_epi8(15);
        w[0] = _mm512_and_si512(codes, mask);
        w[1] = _mm512_and_si512(_mm512_srli_epi16(codes, 4), mask);
    }
};

template <>
struct Bytes<FormatTernary> {
    static constexpr int kParts = 4;
    static constexpr int kBias = 1;
    static void split(__m512i* w, __m512i codes) {
        const __m512i mask = _mm512_set1_epi8(3);
        w[0] = _mm512_and_si512(codes, mask);
        w[1] = _mm512_and_si512(_mm512_srli_epi16(codes, 2), mask);
        w[2] = _mm512_and_si512(_mm512_srli_epi16(codes, 4), mask);
        w[3] = _mm512_and_si512(_mm512_srli_epi16(codes, 6), mask);
    }
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

// 16 columns of codes in two planes.
template <class F, int NX, bool BYTES>
struct PlanesDot {
    const PanelX* x;
    __m512i *high, *low;

    template <int H>
    MC_INLINE void run(const PlanesDot& to, const u8* unit, const u8* row) {
        for (i64 b = 0; b < PanelPlanes<F>::kBytes * 16 / PanelPlanes<F>::kColumns; b += 64) {
            _mm_prefetch(reinterpret_cast<const char*>(unit) + kAhead + H * PanelPlanes<F>::kBytes / 2 + b, _MM_HINT_T1);
        }
        __m512i w[4];
        PanelPlanes<F>::template get<H>(w, unit);
        MC_UNROLL
        for (int t = 0; t < 4; ++t) {
            MC_KEEP(w[t]);
            MC_UNROLL
            for (int j = 0; j < NX; ++j) {
                const u8* four = row + 4 * t + j * to.x->pitch;
                to.high[j] = add_broadcast_products(to.high[j], w[t], four);
                if (!BYTES) to.low[j] = add_broadcast_products(to.low[j], w[t], four + to.x->cols);
            }
        }
    }
};

// Adds the products of SPAN columns; row: theirs of the first x row, codes: those of the panel there. In 8 bits there is no
// low half.
template <class F, int NX, bool BYTES, i64 SPAN>
MC_INLINE void dot_panel_span(const u8* codes, const u8* row, const PanelX& x, __m512i* high, __m512i* low) {
    constexpr i64 kStep = PanelStep<F>::value;
    MC_UNROLL
    for (i64 c = 0; c < SPAN / kStep; ++c) {
        const u8* p = codes + c * 64;
        _mm_prefetch(reinterpret_cast<const char*>(p) + kAhead, _MM_HINT_T1);
        __m512i raw = _mm512_loadu_si512(p);
        MC_KEEP(raw);
        __m512i w[Bytes<F>::kParts];
        Bytes<F>::split(w, raw);
        MC_UNROLL
        for (int part = 0; part < Bytes<F>::kParts; ++part) {
            const u8* at = row + c * kStep + 4 * part;
            MC_UNROLL
            for (int j = 0; j < NX; ++j) {
                high[j] = add_broadcast_products(high[j], w[part], at + j * x.pitch);
                if (!BYTES) low[j] = add_broadcast_products(low[j], w[part], at + j * x.pitch + x.cols);
            }
        }
    }
}

// The columns of a piece; row: its first of x row 0, passed by as the codes are.
template <class F, int NX, bool BYTES>
MC_INLINE void dot_panel_piece(const Piece& piece, const u8*& codes, const u8*& row, const PanelX& x, __m512i* high, __m512i* low) {
    const i64 sixteens = piece.sixteens;
    if constexpr (is_planes<F>) {
        each_sixteen<F, has_half_spans<F>>(sixteens, piece.odd, codes, row, PlanesDot<F, NX, BYTES>{&x, high, low});
    } else {
        constexpr i64 kSpanBytes = panel_bytes<F>(32);
        for (i64 spans = sixteens / 2; spans > 0; --spans, row += 32, codes += kSpanBytes) {
            dot_panel_span<F, NX, BYTES, 32>(codes, row, x, high, low);
        }
        if constexpr (has_half_spans<F>) {
            if (sixteens % 2 == 0) return;
            dot_panel_span<F, NX, BYTES, 16>(codes, row, x, high, low);
            row += 16;
            codes += kSpanBytes / 2;
        }
    }
}

// total[j] = the 16 products of panel p and x row first + j.
template <class F, int NX, bool BYTES>
MC_INLINE void dot_panel(const Matrix& m, i64 p, const PanelX& x, i64 first, __m512* total) {
    const u8* codes = static_cast<const u8*>(m.codes) + p * panel_bytes<F>(m.cols);
    const u8 *row = x.rows + first * x.pitch, *end = row + x.cols;
    const i32* shifts = x.shifts(first);
    const float* scales = x.scales(first);
    const i64 pitch = x.pitch / 4;
    i64 group = p * (m.cols / m.group);
    __m512 part[NX];
    MC_UNROLL
    for (int j = 0; j < NX; ++j) total[j] = part[j] = _mm512_setzero_ps();
    for (const Piece* piece = x.pieces; row < end; ++piece, ++shifts) {
        __m512i high[NX], low[NX];
        MC_UNROLL
        for (int j = 0; j < NX; ++j) {
            low[j] = _mm512_set1_epi32(shifts[j * pitch]);
            if (BYTES) {
                high[j] = low[j];
            } else {
                MC_ZERO(high[j]);
            }
        }
        dot_panel_piece<F, NX, BYTES>(*piece, codes, row, x, high, low);
        _mm_prefetch(static_cast<const char*>(m.scales) + group * kPanelRows * scale_bytes(m.scale_type) + kScalesAhead,
                     _MM_HINT_T0);
        const __m512 scale = panel_lanes(scales_of(m), group, 0).v;
        MC_UNROLL
        for (int j = 0; j < NX; ++j) {
            const __m512i sum = BYTES ? high[j] : _mm512_add_epi32(_mm512_slli_epi32(high[j], 8), low[j]);
            part[j] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, part[j]);
        }
        if (m.offsets != nullptr) {
            const __m512 offset = panel_lanes(offsets_of(m), group, 0).v;
            const float* sums = reinterpret_cast<const float*>(shifts) + x.sums_at;
            MC_UNROLL
            for (int j = 0; j < NX; ++j) part[j] = _mm512_fmadd_ps(_mm512_set1_ps(sums[j * pitch]), offset, part[j]);
        }
        group += piece->group_ends ? 1 : 0;
        if (!piece->block_ends) continue;
        MC_UNROLL
        for (int j = 0; j < NX; ++j) {
            total[j] = _mm512_fmadd_ps(part[j], _mm512_set1_ps(scales[j * pitch]), total[j]);
            part[j] = _mm512_setzero_ps();
        }
        ++scales;
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

#include "linear/int8.hpp"
