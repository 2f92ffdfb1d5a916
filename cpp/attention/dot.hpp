// Attention to bf16 pages by dot products of pairs (vpdpwssd, vdpbf16ps): twice the rate of
// float32. Included by attention/attention.hpp; empty but for stubs where the instruction set lacks them.
//
// Scores: rounding queries to bf16 would cost up to a percent of the output where scores are large.
// 16-bit integers are as fast: each query is scaled to a norm of 32766, each key by a power of two to a norm
// of 2^14 to 2^15, so that no dot product leaves 32 bits and every score is within about 3e-5 * |q| |k| / sqrt(d)
// of the truth.
// Weighted sum: values stay bf16, weights are rounded to bf16, and their total is of the rounded ones.
// What the scaling cannot hold (not finite, or huge) goes to the float32 path, query by query and
// page by page. Of a row's last page, which it reads in part, the other weights are 0.

static constexpr i64 kDotPage = 64;     // tokens of a page that these kernels take
static constexpr i64 kDotRows = 6;      // queries at once
static constexpr i64 kDotFloats = 32768;  // floats of queries that a tile may have: about the L2 cache

// A page in pairs of 16 bits, as 32-bit words, and what to multiply integer scores by.
struct DotPage {
    i32* keys;      // (d / 2, P): two dimensions of a token
    float* scales;  // (P)
    i32* values;    // (P / 2, d): two tokens of a dimension
};

struct DotScratch {
    i16* queries;   // (m, d)
    float* scales;  // (m): integer scores times this and the key's scale are scores; 0: not usable
    i32* who;       // (m): the queries that read a page
    DotPage page;
};

// The page that a tile reads next: its keys and values come from memory while this one is computed.
struct Ahead {
    const char* keys;
    const char* values;
    i64 lines;  // of 64 bytes, of each
    i64 done;
};

// Which tokens of a page the queries of s.who see: those of their rows; `whole`: all of them the whole page.
struct DotSeen {
    Seen rows;
    i64 group;
    bool whole;

    i64 count(i32 who) const { return rows.count(who / group); }
    u64 mask(i32 who) const { return rows.mask(who / group); }
};

// Floats that a scratch for m queries takes, and the scratch in them.
MC_INLINE i64 dot_floats(i64 m, i64 d) { return kDotPage * (d + 1) + m * d / 2 + 2 * round_up(m, W); }

MC_INLINE DotScratch dot_scratch(float* base, i64 m, i64 d) {
    DotScratch s;
    s.page.scales = base;
    s.scales = base + kDotPage;
    s.who = reinterpret_cast<i32*>(s.scales + round_up(m, W));
    s.page.keys = s.who + round_up(m, W);
    s.page.values = s.page.keys + kDotPage * d / 2;
    s.queries = reinterpret_cast<i16*>(s.page.values + kDotPage * d / 2);
    return s;
}

#if !defined(MC_HAS_BF16_DOT) || !defined(MC_HAS_VNNI)

MC_INLINE bool has_dot(const KvView&) { return false; }
MC_INLINE Ahead pages_ahead(const KvView&, i64) { return {}; }
MC_INLINE i64 load_dot_page(const KvView&, i64, i64, i64, bool, const DotPage&, Ahead&) { return 0; }
MC_INLINE void load_dot_queries(const float*, i64, i64, const DotScratch&) {}
MC_INLINE bool has_few(i64, i64) { return false; }
MC_INLINE bool attend_few(const KvView&, i64, const DotScratch&, i64, const Partial&, Ahead&) { return false; }
MC_INLINE void attend_dot(const DotScratch&, i64, i64, const DotSeen&, const Partial&, Ahead&) {}
MC_INLINE i64 int8_usable(const KvView&, i64, i64) { return 0; }
MC_INLINE void attend_int8(const KvView&, i64, const DotScratch&, i64, const DotSeen&, const Partial&, Ahead&) {}

#else

#include "attention/dot_page.hpp"

// m queries (m, d), already divided by sqrt(d).
static void load_dot_queries(const float* from, i64 m, i64 d, const DotScratch& s) {
    for (i64 i = 0; i < m; ++i, from += d) {
        V squares = zero();
        for (i64 e = 0; e < d; e += W) squares = fma(load(from + e), load(from + e), squares);
        const float sum = hsum(squares);
        const bool usable = sum < 1e24F;  // false for NaN
        const __m512 inverse = norm_inverse(set1(usable ? sum : 0.0F)).v;
        s.scales[i] = usable ? (sqrtf(sum) + 1e-30F) / 32766.0F : 0.0F;
        for (i64 e = 0; e < d; e += W) {
            const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(load(from + e).v, inverse));
            __m256i* to = reinterpret_cast<__m256i*>(s.queries + i * d + e);
            _mm256_storeu_si256(to, _mm512_cvtepi32_epi16(whole));
        }
    }
}

MC_INLINE __m512i broadcast_pair(const void* p) {
    i32 word;
    memcpy(&word, p, sizeof word);
    return _mm512_set1_epi32(word);
}

// Integer scores of ROWS queries.
template <int ROWS>
MC_INLINE void dot_scores(const i16* const* queries, i64 d, const i32* keys,
                          __m512i (&sum)[ROWS][kDotPage / 16]) {
    constexpr int N = kDotPage / 16;
    MC_UNROLL
    for (int i = 0; i < ROWS; ++i) {
        MC_UNROLL
        for (int j = 0; j < N; ++j) sum[i][j] = _mm512_setzero_si512();
    }
    for (i64 e = 0; e < d; e += 2, keys += kDotPage) {
        __m512i right[N];
        MC_UNROLL
        for (int j = 0; j < N; ++j) right[j] = _mm512_loadu_si512(keys + 16 * j);
        MC_UNROLL
        for (int i = 0; i < ROWS; ++i) {
            const __m512i left = broadcast_pair(queries[i] + e);
            MC_UNROLL
            for (int j = 0; j < N; ++j) sum[i][j] = add_word_products(sum[i][j], left, right[j]);
        }
    }
}

// sums[i] (d) += weights (ROWS, P), bf16, times values; columns [first, first + 16 * COLS).
template <int ROWS, int COLS>
static void dot_values(const u16* weights, const i32* values, i64 d, i64 first, float* const* sums) {
    __m512 sum[ROWS][COLS];
    MC_UNROLL
    for (int i = 0; i < ROWS; ++i) {
        MC_UNROLL
        for (int j = 0; j < COLS; ++j) sum[i][j] = _mm512_loadu_ps(sums[i] + first + 16 * j);
    }
    values += first;
    for (i64 t = 0; t < kDotPage; t += 2, values += d) {
        __m512bh right[COLS];
        MC_UNROLL
        for (int j = 0; j < COLS; ++j) right[j] = (__m512bh)_mm512_loadu_si512(values + 16 * j);
        MC_UNROLL
        for (int i = 0; i < ROWS; ++i) {
            const __m512bh left = (__m512bh)broadcast_pair(weights + i * kDotPage + t);
            MC_UNROLL
            for (int j = 0; j < COLS; ++j) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], left, right[j]);
        }
    }
    MC_UNROLL
    for (int i = 0; i < ROWS; ++i) {
        MC_UNROLL
        for (int j = 0; j < COLS; ++j) _mm512_storeu_ps(sums[i] + first + 16 * j, sum[i][j]);
    }
}

// Makes `peak` the top of a query's softmax if it is far higher: rescales what was summed.
MC_INLINE void raise_top(float peak, float* sums, i64 d, float* top, float* total) {
    if (!(peak > *top + kSlack)) return;
    const __m512 shrink = exp(set1(*top - peak)).v;
    *top = peak;
    if (*total == 0.0F) return;
    *total *= _mm512_cvtss_f32(shrink);
    for (i64 e = 0; e < d; e += W) {
        _mm512_storeu_ps(sums + e, _mm512_mul_ps(_mm512_loadu_ps(sums + e), shrink));
    }
}

// 2^a within 8e-5 of itself: enough for what is rounded to bf16, within 2e-3.
MC_INLINE __m512 rough_power_of_two(__m512 a) {
    const __m512 r = _mm512_reduce_ps(a, 1);  // a - floor(a)
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(0.0780245226F), r, _mm512_set1_ps(0.226067155F));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.69583354F));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.999925219F));
    return _mm512_scalef_ps(p, a);  // by floor(a)
}

// Folds a page of scores, times `scale`, of one query, which sees those of `mask`, into its softmax; writes weights.
// Most pages leave the top of the softmax where it is: whether they do takes no sum across lanes.
template <bool WHOLE>
MC_INLINE void soften_scores(__m512* score, float scale, u64 mask, float* sums, i64 d, float* top, float* total,
                             u16* weights) {
    constexpr int N = kDotPage / 16;
    constexpr float kLog2e = 1.44269504F;
    if (!WHOLE) {
        MC_UNROLL
        for (int j = 0; j < N; ++j) {
            score[j] = _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), seen_lanes(mask, j), score[j]);
        }
    }
    const __m512 most = _mm512_max_ps(_mm512_max_ps(score[0], score[1]), _mm512_max_ps(score[2], score[3]));
    const __m512 factor = _mm512_set1_ps(scale * kLog2e);
    __m512 base = _mm512_set1_ps(*top * -kLog2e);
    if (_mm512_cmp_ps_mask(_mm512_fmadd_ps(most, factor, base), _mm512_set1_ps(kSlack * kLog2e), _CMP_GT_OQ)) {
        raise_top(_mm512_reduce_max_ps(most) * scale, sums, d, top, total);
        base = _mm512_set1_ps(*top * -kLog2e);
    }
    const __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3f80);
    __m512 sum = _mm512_setzero_ps();
    MC_UNROLL
    for (int j = 0; j < N; j += 2) {
        const __m512 low = rough_power_of_two(_mm512_fmadd_ps(score[j], factor, base));
        const __m512 high = rough_power_of_two(_mm512_fmadd_ps(score[j + 1], factor, base));
        const __m512bh both = _mm512_cvtne2ps_pbh(high, low);
        _mm512_storeu_si512(weights + 16 * j, (__m512i)both);
        sum = _mm512_dpbf16_ps(sum, both, ones);
    }
    *total += _mm512_reduce_add_ps(sum);
}

// The same of integer scores.
template <bool WHOLE>
MC_INLINE void soften_dot(const __m512i* scores, const float* key_scales, float scale, u64 mask, float* sums,
                          i64 d, float* top, float* total, u16* weights) {
    constexpr int N = kDotPage / 16;
    __m512 score[N];
    MC_UNROLL
    for (int j = 0; j < N; ++j) {
        score[j] = _mm512_mul_ps(_mm512_cvtepi32_ps(scores[j]), _mm512_loadu_ps(key_scales + 16 * j));
    }
    soften_scores<WHOLE>(score, scale, mask, sums, d, top, total, weights);
}

// ROWS queries read the loaded page.
template <int ROWS, bool WHOLE>
static void attend_dot_rows(const DotScratch& s, const i32* who, i64 d, const DotSeen& seen, const Partial& p) {
    const i16* queries[ROWS];
    float* sums[ROWS];
    __m512i scores[ROWS][kDotPage / 16];
    alignas(64) u16 weights[ROWS * kDotPage];
    for (int i = 0; i < ROWS; ++i) {
        queries[i] = s.queries + who[i] * d;
        sums[i] = p.sums + who[i] * d;
    }
    dot_scores<ROWS>(queries, d, s.page.keys, scores);
    MC_UNROLL
    for (int i = 0; i < ROWS; ++i) {
        const u64 mask = WHOLE ? ~u64(0) : seen.mask(who[i]);
        soften_dot<WHOLE>(scores[i], s.page.scales, s.scales[who[i]], mask, sums[i], d, p.top + who[i],
                          p.total + who[i], weights + i * kDotPage);
    }
    i64 e = 0;
    for (; e + 64 <= d; e += 64) dot_values<ROWS, 4>(weights, s.page.values, d, e, sums);
    for (; e < d; e += 16) dot_values<ROWS, 1>(weights, s.page.values, d, e, sums);
}

template <bool WHOLE>
static void attend_dot_all(const DotScratch& s, i64 m, i64 d, const DotSeen& seen, const Partial& p, Ahead& ahead) {
    const i32* who = s.who;
    const i64 lines = (ahead.lines - ahead.done + m / kDotRows) / (m / kDotRows + 1);
    for (; m >= kDotRows; m -= kDotRows, who += kDotRows) {
        fetch(ahead, lines);
        attend_dot_rows<kDotRows, WHOLE>(s, who, d, seen, p);
    }
    fetch(ahead, lines);
    for (; m >= 4; m -= 4, who += 4) attend_dot_rows<4, WHOLE>(s, who, d, seen, p);
    for (; m >= 2; m -= 2, who += 2) attend_dot_rows<2, WHOLE>(s, who, d, seen, p);
    if (m == 1) attend_dot_rows<1, WHOLE>(s, who, d, seen, p);
}

// The first m queries of s.who, which ascend, read the loaded page.
static void attend_dot(const DotScratch& s, i64 m, i64 d, const DotSeen& seen, const Partial& p, Ahead& ahead) {
    if (seen.whole) {
        attend_dot_all<true>(s, m, d, seen, p, ahead);
    } else {
        attend_dot_all<false>(s, m, d, seen, p, ahead);
    }
}

#include "attention/few.hpp"
#include "attention/int8.hpp"

#endif
