// Products with panels by AVX2: vpmaddubsw multiplies unsigned codes by signed bytes of x and adds two neighbours in
// 16 bits, which hold the sums of 32 columns as codes are below 16. int8 stays in rows: as two halves of 4 bits it was no
// faster for one row of x, and slower for several. A panel is two vectors of 8 rows. For linear/panels.hpp.

constexpr int kPanelX = 4;          // x rows at once
constexpr i64 kPanelSpan = 32;      // columns summed in 16 bits: 8 products of two, at most 8 * 2 * 15 * 128

// Codes number `part` of each byte.
template <class F>
MC_INLINE __m256i part_of_codes(__m256i raw, int part) {
    constexpr int kBits = 8 / static_cast<int>(CodeBytes<F>::kParts);
    return _mm256_and_si256(_mm256_srli_epi16(raw, part * kBits), _mm256_set1_epi8((1 << kBits) - 1));
}

MC_INLINE __m256i broadcast_four(const u8* p) {
    i32 word;
    memcpy(&word, p, sizeof word);
    return _mm256_set1_epi32(word);
}

MC_INLINE __m256i add_in_16_bits(__m256i sum, __m256i term) {
#if defined(__GNUC__)
    // As an intrinsic GCC makes trees of these sums, of more registers than there are.
    __asm__("vpaddw %1, %0, %0" : "+x"(sum) : "x"(term));
    return sum;
#else
    return _mm256_add_epi16(sum, term);
#endif
}

// Scales or offsets of 8 rows of a panel: vector number i of 16, its half `half`.
MC_INLINE V panel_floats(const void* data, bool half_type, i64 i, i64 half) {
    const i64 at = i * kPanelRows + half * W;
    return half_type ? load_f16(static_cast<const u16*>(data) + at) : load(static_cast<const float*>(data) + at);
}

// Adds the products of kPanelSpan columns from column k on; codes: 8 rows of those of the panel there.
template <class F, int NX>
MC_INLINE void dot_panel_span(const u8* codes, const PanelX& x, i64 first, i64 k, __m256i* sum) {
    constexpr i64 kStep = PanelStep<F>::value, kParts = CodeBytes<F>::kParts;
    __m256i high[NX], low[NX];
    MC_UNROLL
    for (int j = 0; j < NX; ++j) high[j] = low[j] = _mm256_setzero_si256();
    MC_UNROLL
    for (i64 c = 0; c < kPanelSpan / kStep; ++c) {
        const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + c * 64));
        MC_UNROLL
        for (int part = 0; part < kParts; ++part) {
            const __m256i w = part_of_codes<F>(raw, part);
            const u8* at = x.rows + first * x.pitch + k + c * kStep + 4 * part;
            MC_UNROLL
            for (int j = 0; j < NX; ++j, at += x.pitch) {
                high[j] = add_in_16_bits(high[j], _mm256_maddubs_epi16(w, broadcast_four(at)));
                low[j] = add_in_16_bits(low[j], _mm256_maddubs_epi16(w, broadcast_four(at + x.cols)));
            }
        }
    }
    MC_UNROLL
    for (int j = 0; j < NX; ++j) {
        const __m256i upper = _mm256_madd_epi16(high[j], _mm256_set1_epi16(256));
        const __m256i lower = _mm256_madd_epi16(low[j], _mm256_set1_epi16(1));
        sum[j] = _mm256_add_epi32(sum[j], _mm256_add_epi32(upper, lower));
    }
}

// total[j][half] = 8 of the products of panel p and x row first + j.
template <class F, int NX>
MC_INLINE void dot_panel(const Matrix& m, i64 p, const PanelX& x, i64 first, V (*total)[2]) {
    constexpr i64 kSpanBytes = kPanelSpan / PanelStep<F>::value * 64;
    const i64 unit = panel_unit(m), groups = m.cols / m.group, per_group = m.group / unit;
    const u8* codes = static_cast<const u8*>(m.codes) + p * (m.cols / kPanelSpan) * kSpanBytes;
    for (int j = 0; j < NX; ++j) total[j][0] = total[j][1] = zero();
    for (i64 u = 0; u < x.units; ++u, codes += unit / kPanelSpan * kSpanBytes) {
        const i64 group = p * groups + u / per_group;
        for (i64 b = 0; b < unit / kPanelSpan * kSpanBytes; b += 64) prefetch_far(codes + b);
        for (i64 half = 0; half < 2; ++half) {
            __m256i sum[NX];
            for (int j = 0; j < NX; ++j) sum[j] = _mm256_set1_epi32(x.shifts(first + j)[u]);
            for (i64 s = 0; s < unit / kPanelSpan; ++s) {
                const u8* rows = codes + s * kSpanBytes + half * 32;
                dot_panel_span<F, NX>(rows, x, first, u * unit + s * kPanelSpan, sum);
            }
            const V scale = panel_floats(m.scales, m.half_scales, group, half);
            for (int j = 0; j < NX; ++j) {
                const V factor = mul(scale, set1(x.scales(first + j)[u]));
                total[j][half] = fma(to_floats({sum[j]}), factor, total[j][half]);
            }
        }
    }
    for (i64 g = 0; m.offsets != nullptr && g < groups; ++g) {
        for (i64 half = 0; half < 2; ++half) {
            const V offset = panel_floats(m.offsets, m.half_offsets, p * groups + g, half);
            for (int j = 0; j < NX; ++j) {
                total[j][half] = fma(set1(x.sums[(first + j) * x.groups + g]), offset, total[j][half]);
            }
        }
    }
}

template <class F, int NX>
static void finish_panel_rows(const LinearArgs& args, i64 p, const PanelX& x, i64 first) {
    V total[NX][2];
    dot_panel<F, NX>(args.w, p, x, first, total);
    for (int j = 0; j < NX; ++j) {
        for (i64 half = 0; half < 2; ++half) {
            const i64 column = p * kPanelRows + half * W, left = args.w.rows - column;
            if (left <= 0) break;
            const int n = left < W ? static_cast<int>(left) : W;
            float* y = args.y + (first + j) * args.w.rows + column;
            V value = total[j][half];
            if (args.bias != nullptr) value = add(value, loadn(args.bias + column, n));
            if (args.add) value = fma(set1(args.scale), value, loadn(y, n));
            storen(y, value, n);
        }
    }
}
