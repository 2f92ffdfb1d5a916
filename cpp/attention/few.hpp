// A whole bf16 page for few queries (decoding): converted in registers, never stored, because the page and
// its conversion together would fill the first-level cache. The same bits as attention/dot.hpp computes.

static constexpr i64 kFewQueries = 16;

MC_INLINE bool has_few(i64 m, i64 d) { return m <= kFewQueries && d % 32 == 0; }

template <int ROWS>
static void few_scores(const i16* const* queries, i64 d, const u16* keys, const u16* values, const u16* shifts,
                       i32* scores, Ahead& ahead) {
    for (i64 j = 0; j < kDotPage; j += 32) {
        const __m512i shift = _mm512_loadu_si512(shifts + j);
        __m512i sum[ROWS][2];
        MC_UNROLL
        for (int i = 0; i < ROWS; ++i) sum[i][0] = sum[i][1] = _mm512_setzero_si512();
        for (i64 e = 0; e < d; e += 2) {
            fetch(ahead, 1);
            const char* soon = reinterpret_cast<const char*>(values + j * d + e * 32);
            _mm_prefetch(soon, _MM_HINT_T0);  // by now in the second-level cache
            _mm_prefetch(soon + 64, _MM_HINT_T0);
            const TwoPairs pairs = key_pairs(keys + e * kDotPage + j, shift);
            MC_UNROLL
            for (int i = 0; i < ROWS; ++i) {
                const __m512i query = broadcast_pair(queries[i] + e);
                sum[i][0] = _mm512_dpwssd_epi32(sum[i][0], query, pairs.first);
                sum[i][1] = _mm512_dpwssd_epi32(sum[i][1], query, pairs.second);
            }
        }
        MC_UNROLL
        for (int i = 0; i < ROWS; ++i) {
            _mm512_storeu_si512(scores + i * kDotPage + j, sum[i][0]);
            _mm512_storeu_si512(scores + i * kDotPage + j + 16, sum[i][1]);
        }
    }
}

template <int ROWS>
static void few_values(const u16* weights, const u16* values, i64 d, float* const* sums, Ahead& ahead) {
    for (i64 e = 0; e < d; e += 32) {
        __m512 sum[ROWS][2];
        MC_UNROLL
        for (int i = 0; i < ROWS; ++i) {
            sum[i][0] = _mm512_loadu_ps(sums[i] + e);
            sum[i][1] = _mm512_loadu_ps(sums[i] + e + 16);
        }
        for (i64 t = 0; t < kDotPage; t += 2) {
            fetch(ahead, 1);
            const TwoPairs pairs = two_pairs_of(values + t * d + e, values + (t + 1) * d + e);
            MC_UNROLL
            for (int i = 0; i < ROWS; ++i) {
                const __m512bh weight = (__m512bh)broadcast_pair(weights + i * kDotPage + t);
                sum[i][0] = _mm512_dpbf16_ps(sum[i][0], weight, (__m512bh)pairs.first);
                sum[i][1] = _mm512_dpbf16_ps(sum[i][1], weight, (__m512bh)pairs.second);
            }
        }
        MC_UNROLL
        for (int i = 0; i < ROWS; ++i) {
            _mm512_storeu_ps(sums[i] + e, sum[i][0]);
            _mm512_storeu_ps(sums[i] + e + 16, sum[i][1]);
        }
    }
}

template <int ROWS>
static void attend_few_rows(const DotScratch& s, const i32* who, const u16* keys, const u16* values, i64 d,
                            const u16* shifts, const Partial& p, Ahead& ahead) {
    const i16* queries[ROWS];
    float* sums[ROWS];
    alignas(64) i32 scores[ROWS * kDotPage];
    alignas(64) u16 weights[ROWS * kDotPage];
    for (int i = 0; i < ROWS; ++i) {
        queries[i] = s.queries + who[i] * d;
        sums[i] = p.sums + who[i] * d;
    }
    few_scores<ROWS>(queries, d, keys, values, shifts, scores, ahead);
    for (int i = 0; i < ROWS; ++i) {
        __m512i row[kDotPage / 16];
        MC_UNROLL
        for (int j = 0; j < kDotPage / 16; ++j) row[j] = _mm512_loadu_si512(scores + i * kDotPage + 16 * j);
        soften_dot<true>(row, s.page.scales, s.scales[who[i]], ~u64(0), sums[i], d, p.top + who[i],
                         p.total + who[i], weights + i * kDotPage);
    }
    few_values<ROWS>(weights, values, d, sums, ahead);
}

// The first m queries of s.who read page `at`; false where only float32 will do.
static bool attend_few(const KvView& kv, i64 at, const DotScratch& s, i64 m, const Partial& p, Ahead& ahead) {
    const i64 d = kv.d;
    const u16* keys = static_cast<const u16*>(kv.keys) + at * d * kDotPage;
    const u16* values = static_cast<const u16*>(kv.values) + at * d * kDotPage;
    u16 shifts[kDotPage];
    if (measure_keys(keys, d, kDotPage, s.page.scales, shifts, ahead) < kDotPage) return false;
    const i32* who = s.who;
    for (; m >= 8; m -= 8, who += 8) attend_few_rows<8>(s, who, keys, values, d, shifts, p, ahead);
    for (; m >= 4; m -= 4, who += 4) attend_few_rows<4>(s, who, keys, values, d, shifts, p, ahead);
    for (; m >= 2; m -= 2, who += 2) attend_few_rows<2>(s, who, keys, values, d, shifts, p, ahead);
    if (m == 1) attend_few_rows<1>(s, who, keys, values, d, shifts, p, ahead);
    return true;
}
