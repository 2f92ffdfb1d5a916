// Products with panels by AVX2: vpmaddubsw multiplies unsigned codes by signed bytes of x and adds two neighbours in
// 16 bits, which hold the sums of 32 columns as codes are below 16. Codes of 8 bits become words, which vpmaddwd multiplies
// by words of x. A panel is two vectors of 8 rows. For linear/panels.hpp.

constexpr int kPanelX = 4;          // x rows at once
constexpr i64 kPanelSpan = 32;      // columns summed in 16 bits: 8 products of two, at most 8 * 2 * 15 * 128

// Whether x is 16-bit words: of each four columns the first and third, then the second and fourth.
template <class F>
constexpr bool words_of_x = CodeBytes<F>::kParts == 1;

MC_INLINE void store_x_words(u8* to, const Ints* q) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(q[0].v, q[1].v), 0xd8);
    const __m256i order = _mm256_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15, 0, 1, 4, 5, 2, 3, 6, 7, 8, 9,
                                           12, 13, 10, 11, 14, 15);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_shuffle_epi8(words, order));
}

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

// 16 columns of codes in two planes, of 8 rows of a panel: of 6 bits two, of fewer four products of two fit in 16 bits.
template <class F, int NX>
struct PlanesDot {
    const PanelX* x;
    Ints* sum;

    template <int H>
    MC_INLINE void run(const PlanesDot& to, const u8* unit, const u8* row) {
        constexpr int kTogether = F::kLow + F::kHigh == 6 ? 2 : 4;
        __m256i w[4];
        PanelPlanes<F>::template get<H>(w, unit);
        const i64 cols = to.x->cols;
        MC_UNROLL
        for (int j = 0; j < NX; ++j, row += to.x->pitch) {
            MC_UNROLL
            for (int t = 0; t < 4; t += kTogether) {
                __m256i high = _mm256_maddubs_epi16(w[t], broadcast_four(row + 4 * t));
                __m256i low = _mm256_maddubs_epi16(w[t], broadcast_four(row + 4 * t + cols));
                MC_UNROLL
                for (int u = t + 1; u < t + kTogether; ++u) {
                    high = add_in_16_bits(high, _mm256_maddubs_epi16(w[u], broadcast_four(row + 4 * u)));
                    low = add_in_16_bits(low, _mm256_maddubs_epi16(w[u], broadcast_four(row + 4 * u + cols)));
                }
                const __m256i upper = _mm256_madd_epi16(high, _mm256_set1_epi16(256));
                const __m256i lower = _mm256_madd_epi16(low, _mm256_set1_epi16(1));
                to.sum[j].v = _mm256_add_epi32(to.sum[j].v, _mm256_add_epi32(upper, lower));
            }
        }
    }
};

// Adds the products of SPAN columns; row: theirs of the first x row, codes: 8 rows of those of the panel there.
template <class F, int NX, i64 SPAN>
MC_INLINE void dot_byte_span(const u8* codes, const u8* row, const PanelX& x, Ints* sum) {
    constexpr i64 kStep = PanelStep<F>::value, kParts = CodeBytes<F>::kParts;
    __m256i high[NX], low[NX];
    MC_UNROLL
    for (int j = 0; j < NX; ++j) high[j] = low[j] = _mm256_setzero_si256();
    MC_UNROLL
    for (i64 c = 0; c < SPAN / kStep; ++c) {
        const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + c * 64));
        MC_UNROLL
        for (int part = 0; part < kParts; ++part) {
            const __m256i w = part_of_codes<F>(raw, part);
            const u8* at = row + c * kStep + 4 * part;
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
        sum[j].v = _mm256_add_epi32(sum[j].v, _mm256_add_epi32(upper, lower));
    }
}

// The same by words.
template <class F, int NX, i64 SPAN>
MC_INLINE void dot_word_span(const u8* codes, const u8* row, const PanelX& x, Ints* sum) {
    MC_UNROLL
    for (i64 c = 0; c < SPAN / 4; ++c) {
        const Words raw = load_words(codes + c * 64);
        const Words even = low_bytes(raw), odd = high_bytes(raw);
        const u8* at = row + 8 * c;
        MC_UNROLL
        for (int j = 0; j < NX; ++j, at += x.pitch) {
            sum[j] = dot(sum[j], even, {broadcast_four(at)});
            sum[j] = dot(sum[j], odd, {broadcast_four(at + 4)});
        }
    }
}

template <class F, int NX, i64 SPAN>
MC_INLINE void dot_panel_span(const u8* codes, const u8* row, const PanelX& x, Ints* sum) {
    if constexpr (words_of_x<F>) {
        dot_word_span<F, NX, SPAN>(codes, row, x, sum);
    } else {
        dot_byte_span<F, NX, SPAN>(codes, row, x, sum);
    }
}

// The columns of a piece, passed by in row and codes.
template <class F, int NX>
MC_INLINE void dot_panel_piece(const Piece& piece, const u8*& codes, const u8*& row, const PanelX& x, Ints* sum) {
    const i64 sixteens = piece.sixteens;
    if constexpr (is_planes<F>) {
        each_sixteen<F, has_half_spans<F>>(sixteens, piece.odd, codes, row, PlanesDot<F, NX>{&x, sum});
    } else {
        constexpr i64 kSpanBytes = panel_bytes<F>(kPanelSpan), kRowBytes = kPanelSpan * (words_of_x<F> ? 2 : 1);
        for (i64 spans = sixteens / 2; spans > 0; --spans, row += kRowBytes, codes += kSpanBytes) {
            dot_panel_span<F, NX, kPanelSpan>(codes, row, x, sum);
        }
        if constexpr (has_half_spans<F>) {
            if (sixteens % 2 == 0) return;
            dot_panel_span<F, NX, kPanelSpan / 2>(codes, row, x, sum);
            row += kRowBytes / 2;
            codes += kSpanBytes / 2;
        }
    }
}

// Where a block begins.
struct PanelPlace {
    const Piece* piece;
    const u8 *codes, *row;
    const i32* shifts;
    i64 group;
};

// part[j] = 8 of the parts of a block, of the weight rows of a half; goes on to the next block.
template <class F, int NX>
MC_INLINE void dot_panel_block(const Matrix& m, i64 half, const PanelX& x, PanelPlace& at, V* part) {
    const i64 pitch = x.pitch / 4;
    MC_UNROLL
    for (int j = 0; j < NX; ++j) part[j] = zero();
    for (bool last = false; !last; ++at.piece, ++at.shifts) {
        Ints sum[NX];
        MC_UNROLL
        for (int j = 0; j < NX; ++j) sum[j].v = _mm256_set1_epi32(at.shifts[j * pitch]);
        dot_panel_piece<F, NX>(*at.piece, at.codes, at.row, x, sum);
        const V scale = panel_lanes(scales_of(m), at.group, half * W);
        MC_UNROLL
        for (int j = 0; j < NX; ++j) part[j] = fma(to_floats(sum[j]), scale, part[j]);
        if (m.offsets != nullptr) {
            const V offset = panel_lanes(offsets_of(m), at.group, half * W);
            const float* sums = reinterpret_cast<const float*>(at.shifts) + x.sums_at;
            MC_UNROLL
            for (int j = 0; j < NX; ++j) part[j] = fma(set1(sums[j * pitch]), offset, part[j]);
        }
        at.group += at.piece->group_ends ? 1 : 0;
        last = at.piece->block_ends;
    }
}

// total[j][half] = 8 of the products of panel p and x row first + j.
template <class F, int NX>
MC_INLINE void dot_panel(const Matrix& m, i64 p, const PanelX& x, i64 first, V (*total)[2]) {
    constexpr i64 kBlockBytes = panel_bytes<F>(kBlockDepth);
    const u8* codes = static_cast<const u8*>(m.codes) + p * panel_bytes<F>(m.cols);
    const i64 pitch = x.pitch / 4;
    const float *scales = x.scales(first), *end = scales + (m.cols + kBlockDepth - 1) / kBlockDepth;
    PanelPlace at = {x.pieces, codes, x.rows + first * x.pitch, x.shifts(first), p * (m.cols / m.group)};
    for (int j = 0; j < NX; ++j) total[j][0] = total[j][1] = zero();
    for (; scales < end; ++scales) {
        for (i64 b = 0; b < kBlockBytes; b += 64) prefetch_far(at.codes + b);
        PanelPlace other = at;
        other.codes += 32;
        V part[NX];
        dot_panel_block<F, NX>(m, 0, x, at, part);
        for (int j = 0; j < NX; ++j) total[j][0] = fma(part[j], set1(scales[j * pitch]), total[j][0]);
        dot_panel_block<F, NX>(m, 1, x, other, part);
        for (int j = 0; j < NX; ++j) total[j][1] = fma(part[j], set1(scales[j * pitch]), total[j][1]);
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
