// Attention to int8 pages by products of pairs (vpdpwssd). Included by attention/dot.hpp.
//
// Codes are widened to 16 bits in registers: pages hold them in the pairs that products take. Queries are
// int16 codes as for bf16 pages; weights of a page, times the scales of its values, become int16 codes of
// which the largest is 32766: finer than bf16, and no sum of 64 leaves 32 bits. Tokens that a row does not see
// get weight 0, and whole numbers have no NaN: so the page that a row reads in part goes this way, too.

// Of the first `count` tokens of page `at`, how many come before one whose scales are no numbers, or huge.
static i64 int8_usable(const KvView& kv, i64 at, i64 count) {
    const Int8Page page(kv, at);
    u64 bad = 0;
    for (int j = 0; j < kDotPage / 16; ++j) {
        const __mmask16 mask = seen_lanes(low_bits(count), j);
        const __m512 most = _mm512_set1_ps(1e18F);
        const __m512 keys = _mm512_maskz_loadu_ps(mask, page.key_scales + 16 * j);
        const __m512 values = _mm512_maskz_loadu_ps(mask, page.value_scales + 16 * j);
        const u64 beyond = _mm512_cmp_ps_mask(keys, most, _CMP_NLT_UQ) | _mm512_cmp_ps_mask(values, most, _CMP_NLT_UQ);
        bad |= beyond << (16 * j);
    }
    return lowest_bit(bad, count);
}

// 16 pairs of codes.
MC_INLINE __m512i widen_pairs(const i8* p) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

// Integer scores (ROWS, P) of ROWS queries, VECS * 16 tokens at a time.
template <int ROWS, int VECS>
static void int8_scores(const i16* const* queries, i64 d, const i8* keys, i32* scores, Ahead& ahead) {
    for (i64 t = 0; t < kDotPage; t += 16 * VECS) {
        __m512i sum[ROWS][VECS];
        MC_UNROLL
        for (int i = 0; i < ROWS; ++i) {
            MC_UNROLL
            for (int j = 0; j < VECS; ++j) sum[i][j] = _mm512_setzero_si512();
        }
        for (i64 e = 0; e < d; e += 2) {
            if (VECS < 4) fetch(ahead, 1);
            __m512i right[VECS];
            MC_UNROLL
            for (int j = 0; j < VECS; ++j) right[j] = widen_pairs(keys + e * kDotPage + 2 * (t + 16 * j));
            MC_UNROLL
            for (int i = 0; i < ROWS; ++i) {
                const __m512i left = broadcast_pair(queries[i] + e);
                MC_UNROLL
                for (int j = 0; j < VECS; ++j) sum[i][j] = add_word_products(sum[i][j], left, right[j]);
            }
        }
        MC_UNROLL
        for (int i = 0; i < ROWS; ++i) {
            MC_UNROLL
            for (int j = 0; j < VECS; ++j) {
                _mm512_storeu_si512(scores + i * kDotPage + t + 16 * j, sum[i][j]);
            }
        }
    }
}

// Folds the integer scores of one query that `seen` has into its softmax; writes codes of the weights times the values'
// scales (P), and returns what codes times it are. Rescales the sums.
MC_INLINE float soften_int8(const i32* scores, const float* key_scales, const float* value_scales, u64 seen,
                            float scale, float* sums, i64 d, float* top, float* total, i16* weights) {
    constexpr int N = kDotPage / 16;
    constexpr float kLog2e = 1.44269504F;
    __m512 score[N];
    __m512 most = _mm512_set1_ps(-INFINITY);
    MC_UNROLL
    for (int j = 0; j < N; ++j) {
        const __mmask16 mask = seen_lanes(seen, j);
        score[j] = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_loadu_si512(scores + 16 * j)),
                                 _mm512_maskz_loadu_ps(mask, key_scales + 16 * j));
        most = _mm512_mask_max_ps(most, mask, most, score[j]);
    }
    raise_top(_mm512_reduce_max_ps(most) * scale, sums, d, top, total);
    const __m512 factor = _mm512_set1_ps(scale * kLog2e);
    const __m512 base = _mm512_set1_ps(*top * -kLog2e);
    __m512 sum = _mm512_setzero_ps();
    most = _mm512_setzero_ps();
    MC_UNROLL
    for (int j = 0; j < N; ++j) {
        const __mmask16 mask = seen_lanes(seen, j);
        const __m512 weight = power_of_two(_mm512_fmadd_ps(score[j], factor, base));
        sum = _mm512_mask_add_ps(sum, mask, sum, weight);
        score[j] = _mm512_maskz_mul_ps(mask, weight, _mm512_maskz_loadu_ps(mask, value_scales + 16 * j));
        most = _mm512_max_ps(most, score[j]);
    }
    *total += _mm512_reduce_add_ps(sum);
    const float peak = _mm512_reduce_max_ps(most);
    const __m512 inverse = _mm512_set1_ps(peak > kTiny ? 32766.0F / peak : 0.0F);
    MC_UNROLL
    for (int j = 0; j < N; ++j) {
        const __m512i codes = _mm512_cvtps_epi32(_mm512_mul_ps(score[j], inverse));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(weights + 16 * j), _mm512_cvtepi32_epi16(codes));
    }
    return peak * (1 / 32766.0F);
}

// sums[i] (d) += factors[i] * codes (ROWS, P) times values; columns [first, first + 16 * COLS).
template <int ROWS, int COLS>
static void int8_values(const i16* weights, const float* factors, const i8* values, i64 d, i64 first,
                        float* const* sums, Ahead& ahead) {
    __m512i sum[ROWS][COLS];
    MC_UNROLL
    for (int i = 0; i < ROWS; ++i) {
        MC_UNROLL
        for (int j = 0; j < COLS; ++j) sum[i][j] = _mm512_setzero_si512();
    }
    for (i64 t = 0; t < kDotPage; t += 2) {
        if (COLS < 4) fetch(ahead, 1);
        __m512i right[COLS];
        MC_UNROLL
        for (int j = 0; j < COLS; ++j) right[j] = widen_pairs(values + t * d + 2 * (first + 16 * j));
        MC_UNROLL
        for (int i = 0; i < ROWS; ++i) {
            const __m512i left = broadcast_pair(weights + i * kDotPage + t);
            MC_UNROLL
            for (int j = 0; j < COLS; ++j) sum[i][j] = add_word_products(sum[i][j], left, right[j]);
        }
    }
    MC_UNROLL
    for (int i = 0; i < ROWS; ++i) {
        MC_UNROLL
        for (int j = 0; j < COLS; ++j) {
            float* to = sums[i] + first + 16 * j;
            const __m512 factor = _mm512_set1_ps(factors[i]);
            _mm512_storeu_ps(to, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[i][j]), factor, _mm512_loadu_ps(to)));
        }
    }
}

// One (page, kv head), and what is seen of it.
struct Int8View {
    const i8* keys;
    const i8* values;
    const float* key_scales;
    const float* value_scales;
    DotSeen seen;
};

template <int ROWS, int VECS>
static void attend_int8_rows(const Int8View& v, const DotScratch& s, const i32* who, i64 d, const Partial& p,
                             Ahead& ahead) {
    const i16* queries[ROWS];
    float* sums[ROWS];
    float factors[ROWS];
    alignas(64) i32 scores[ROWS * kDotPage];
    alignas(64) i16 weights[ROWS * kDotPage];
    for (int i = 0; i < ROWS; ++i) {
        queries[i] = s.queries + who[i] * d;
        sums[i] = p.sums + who[i] * d;
    }
    int8_scores<ROWS, VECS>(queries, d, v.keys, scores, ahead);
    for (int i = 0; i < ROWS; ++i) {
        const u64 mask = v.seen.whole ? ~u64(0) : v.seen.mask(who[i]);
        factors[i] = soften_int8(scores + i * kDotPage, v.key_scales, v.value_scales, mask, s.scales[who[i]],
                                 sums[i], d, p.top + who[i], p.total + who[i], weights + i * kDotPage);
    }
    i64 e = 0;
    for (; e + 16 * VECS <= d; e += 16 * VECS) {
        int8_values<ROWS, VECS>(weights, factors, v.values, d, e, sums, ahead);
    }
    for (; e < d; e += 16) int8_values<ROWS, 1>(weights, factors, v.values, d, e, sums, ahead);
}

// The first m queries of s.who, which ascend, read page `at`.
static void attend_int8(const KvView& kv, i64 at, const DotScratch& s, i64 m, const DotSeen& seen, const Partial& p,
                        Ahead& ahead) {
    const i64 d = kv.d;
    const Int8Page page(kv, at);
    const Int8View v = {page.keys, page.values, page.key_scales, page.value_scales, seen};
    const i32* who = s.who;
    const i64 lines = (ahead.lines + m / kDotRows) / (m / kDotRows + 1);
    for (; m >= 2 * kDotRows; m -= kDotRows, who += kDotRows) {
        fetch(ahead, lines);
        attend_int8_rows<kDotRows, 4>(v, s, who, d, p, ahead);
    }
    for (; m >= 8; m -= 8, who += 8) attend_int8_rows<8, 2>(v, s, who, d, p, ahead);
    for (; m >= 4; m -= 4, who += 4) attend_int8_rows<4, 2>(v, s, who, d, p, ahead);
    for (; m >= 1; --m, ++who) attend_int8_rows<1, 2>(v, s, who, d, p, ahead);
}
