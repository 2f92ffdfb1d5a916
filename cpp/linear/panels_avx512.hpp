// Products with panels by VNNI: vpdpbusd multiplies four codes of each of 16 rows by four bytes of x, broadcast by
// the instruction itself. For linear/panels.hpp.

constexpr int kPanelX = 8;          // x rows at once

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

#include "linear/int8.hpp"
