// Scores of compressed keys held as int16 codes, by dot products of pairs (vpdpwssd). Included by
// select/select.hpp; empty but for stubs where the instruction set lacks them.
//
// Queries become int16 codes of norm 32766 too, so that no product leaves 32 bits: sums of integers are
// exact. Scores are in units of ln 2 everywhere: a weight is a power of two.

using i16 = int16_t;

#if !defined(MC_HAS_BF16_DOT) || !defined(MC_HAS_VNNI)

template <bool DOT>
MC_INLINE V power_of(V a) {
    return exp2(a);
}
MC_INLINE void store_dot_row(const float*, i64, i16*, float*) {}
MC_INLINE void dot_columns(const float*, const float*, i64, i64, const float*, const float*, float*, float*) {}
MC_INLINE void spread_queries(const i16*, i64, i64, i32*) {}
MC_INLINE void dot_pages(const i32*, const float*, i64, i64, const i16* const*, const i16* const*, const float*,
                         float*, float*) {}

#else

template <int N>
struct Number {
    static constexpr int value = N;
};

// 2^a within 3e-6 of itself.
MC_INLINE __m512 power_of_two(__m512 a) {
    const __m512 r = _mm512_reduce_ps(a, 1);  // a - floor(a)
    __m512 p = _mm512_set1_ps(0.0135206F);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.05203743F));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.24142749F));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.69300662F));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.00000252F));
    return _mm512_scalef_ps(p, a);  // by floor(a)
}

template <bool DOT>
MC_INLINE V power_of(V a) {
    if constexpr (DOT) return {power_of_two(a.v)};
    return exp2(a);
}

// What to multiply a query (d) by for codes; *scale: what codes times it are. NaN, and
// codes 0, where one number is not finite.
MC_INLINE V dot_query_inverse(const float* x, i64 d, float* scale) {
    V most = zero();
    each_vector(d, [&](i64 i, int n) {
        const V part = load_some(x + i, n);
        most = max(max(part, sub(zero(), part)), most);
    });
    const float peak = hmax(most);
    const float unit = peak >= kTiny ? 1.0F / peak : 0.0F;
    V squares = zero();
    each_vector(d, [&](i64 i, int n) {
        const V part = mul(load_some(x + i, n), set1(unit));
        squares = fma(part, part, squares);
    });
    const float sum = hsum(squares);
    const float norm = sqrtf(sum) * peak;
    const bool known = norm < INFINITY;  // not so for NaN
    *scale = known ? norm / static_cast<float>(kCodeNorm) : NAN;
    return set1(known && norm >= kTiny ? static_cast<float>(kCodeNorm) / norm : 0.0F);
}

MC_INLINE __m512i query_codes(const float* x, V inverse, int n) {
    const __m512 product = _mm512_mul_ps(load_some(x, n).v, inverse.v);
    return _mm512_maskz_cvtps_epi32(_mm512_cmp_ps_mask(product, product, _CMP_ORD_Q), product);
}

// Stores a query (d) as a row.
static void store_dot_row(const float* x, i64 d, i16* to, float* scale) {
    const V inverse = dot_query_inverse(x, d, scale);
    each_vector(d, [&](i64 i, int n) {
        _mm512_mask_cvtepi32_storeu_epi16(to + i, lanes(n), query_codes(x + i, inverse, n));
    });
}

// Scores of COLS vectors of keys for one column from sums of products; or where PLAIN their powers of two,
// summed into lanes (W).
template <int COLS, bool PLAIN>
MC_INLINE void store_scores(const __m512i* sum, float query_scale, const float* scales, float* to, float* lanes) {
    __m512 total = PLAIN ? _mm512_loadu_ps(lanes) : _mm512_setzero_ps();
    MC_UNROLL
    for (int j = 0; j < COLS; ++j) {
        const __m512 both = _mm512_mul_ps(_mm512_loadu_ps(scales + 16 * j), _mm512_set1_ps(query_scale));
        __m512 score = _mm512_mul_ps(_mm512_cvtepi32_ps(sum[j]), both);
        if (PLAIN) {
            score = power_of_two(score);
            total = _mm512_add_ps(total, score);
        }
        _mm512_storeu_ps(to + 16 * j, score);
    }
    if (PLAIN) _mm512_storeu_ps(lanes, total);
}

// Scores (ROWS columns, COLS vectors of keys), kChunk apart, of a chunk's pairs (d / 2, kChunk); or where
// PLAIN their powers of two, summed into lanes (ROWS, W).
template <int ROWS, int COLS, bool PLAIN>
MC_INLINE void dot_block(const i16* queries, const float* query_scales, i64 d, const i32* pairs,
                         const float* scales, float* to, float* lanes) {
    __m512i sum[ROWS][COLS];
    MC_UNROLL
    for (int i = 0; i < ROWS; ++i) {
        MC_UNROLL
        for (int j = 0; j < COLS; ++j) sum[i][j] = _mm512_setzero_si512();
    }
    for (i64 e = 0; e < d; e += 2, pairs += kChunk) {
        __m512i right[COLS];
        MC_UNROLL
        for (int j = 0; j < COLS; ++j) right[j] = _mm512_loadu_si512(pairs + 16 * j);
        MC_UNROLL
        for (int i = 0; i < ROWS; ++i) {
            i32 pair;
            memcpy(&pair, queries + i * d + e, sizeof pair);
            const __m512i left = _mm512_set1_epi32(pair);
            MC_UNROLL
            for (int j = 0; j < COLS; ++j) sum[i][j] = add_word_products(sum[i][j], left, right[j]);
        }
    }
    MC_UNROLL
    for (int i = 0; i < ROWS; ++i) {
        store_scores<COLS, PLAIN>(sum[i], query_scales[i], scales, to + i * kChunk,
                                  PLAIN ? lanes + i * W : nullptr);
    }
}

template <int ROWS, int COLS, bool PLAIN>
MC_INLINE void dot_rows(const i16* queries, const float* query_scales, i64 d, const i32* pairs,
                        const float* scales, float* to, float* lanes) {
    for (i64 j = 0; j < kChunk; j += COLS * W) {
        dot_block<ROWS, COLS, PLAIN>(queries, query_scales, d, pairs + j, scales + j, to + j, lanes);
    }
}

template <bool PLAIN>
static void dot_all(const i16* queries, const float* query_scales, i64 columns, i64 d, const i32* pairs,
                    const float* scales, float* to, float* lanes) {
    i64 c = 0;
    const auto some = [&](auto rows, auto vectors) {
        constexpr int ROWS = decltype(rows)::value;
        for (; c + ROWS <= columns; c += ROWS) {
            dot_rows<ROWS, decltype(vectors)::value, PLAIN>(queries + c * d, query_scales + c, d, pairs, scales,
                                                            to + c * kChunk, PLAIN ? lanes + c * W : nullptr);
        }
    };
    some(Number<8>(), Number<2>());
    some(Number<2>(), Number<4>());
    some(Number<1>(), Number<4>());
}

// Scores (columns, kChunk) of a chunk of keys, or with `lanes` (columns, W) their powers of two, whose sums go
// there. Queries (columns, d) of codes, keys (d / 2, kChunk) of pairs.
MC_INLINE void dot_columns(const float* queries, const float* query_scales, i64 columns, i64 d, const float* codes,
                           const float* scales, float* to, float* lanes) {
    const i16* rows = reinterpret_cast<const i16*>(queries);
    const i32* pairs = reinterpret_cast<const i32*>(codes);
    if (lanes) {
        dot_all<true>(rows, query_scales, columns, d, pairs, scales, to, lanes);
    } else {
        dot_all<false>(rows, query_scales, columns, d, pairs, scales, to, nullptr);
    }
}

// Queries (columns, d) as dot_pages takes them: (columns, d / 32, 4, 16), each fourth pair of 16 in four lanes.
static void spread_queries(const i16* queries, i64 columns, i64 d, i32* to) {
    for (i64 i = 0; i < columns * d; i += 32, to += 64) {
        const __m512i pairs = _mm512_loadu_si512(queries + i);
        _mm512_storeu_si512(to, _mm512_shuffle_epi32(pairs, _MM_PERM_AAAA));
        _mm512_storeu_si512(to + 16, _mm512_shuffle_epi32(pairs, _MM_PERM_BBBB));
        _mm512_storeu_si512(to + 32, _mm512_shuffle_epi32(pairs, _MM_PERM_CCCC));
        _mm512_storeu_si512(to + 48, _mm512_shuffle_epi32(pairs, _MM_PERM_DDDD));
    }
}

// Sixteen pairs in a register: folded into the instructions that use them, loads would be done anew for each.
MC_INLINE __m512i load_once(const void* from) {
    __m512i pairs = _mm512_loadu_si512(from);
#if defined(__GNUC__)
    __asm__("" : "+v"(pairs));
#endif
    return pairs;
}

// Pairs i, i + 4, i + 8 and i + 12 of four keys, from 16 pairs of each: pair by pair in lanes.
MC_INLINE void turn_pairs(const i16* const* keys, i64 at, __m512i* to) {
    const __m512i a = load_once(keys[0] + at);
    const __m512i b = load_once(keys[1] + at);
    const __m512i c = load_once(keys[2] + at);
    const __m512i d = load_once(keys[3] + at);
    const __m512i low = _mm512_unpacklo_epi32(a, b);
    const __m512i high = _mm512_unpackhi_epi32(a, b);
    const __m512i next_low = _mm512_unpacklo_epi32(c, d);
    const __m512i next_high = _mm512_unpackhi_epi32(c, d);
    to[0] = _mm512_unpacklo_epi64(low, next_low);
    to[1] = _mm512_unpackhi_epi64(low, next_low);
    to[2] = _mm512_unpacklo_epi64(high, next_high);
    to[3] = _mm512_unpackhi_epi64(high, next_high);
}

// Sums of products (ROWS columns, 8 keys), kChunk apart.
template <int ROWS>
MC_INLINE void dot_eight(const i32* queries, i64 d, const i16* const* keys, const i16* const* soon, i32* to) {
    __m512i sum[ROWS][2];
    MC_UNROLL
    for (int i = 0; i < ROWS; ++i) sum[i][0] = sum[i][1] = _mm512_setzero_si512();
    for (i64 e = 0; e < d; e += 32) {
        __m512i left[4], right[4];
        turn_pairs(keys, e, left);
        turn_pairs(keys + 4, e, right);
        MC_UNROLL
        for (int p = 0; p < 4; ++p) {
            _mm_prefetch(reinterpret_cast<const char*>(soon[p] + e), _MM_HINT_T1);
            _mm_prefetch(reinterpret_cast<const char*>(soon[p + 4] + e), _MM_HINT_T1);
            MC_UNROLL
            for (int i = 0; i < ROWS; ++i) {
                const __m512i query = load_once(queries + 2 * (i * d + e) + 16 * p);
                sum[i][0] = add_word_products(sum[i][0], left[p], query);
                sum[i][1] = add_word_products(sum[i][1], right[p], query);
            }
        }
    }
    __m512i half[ROWS];  // of a column, two lanes of four keys, then two of the others
    MC_UNROLL
    for (int i = 0; i < ROWS; ++i) {
        half[i] = _mm512_add_epi32(_mm512_shuffle_i32x4(sum[i][0], sum[i][1], 0x44),
                                   _mm512_shuffle_i32x4(sum[i][0], sum[i][1], 0xee));
    }
    MC_UNROLL
    for (int i = 0; i < ROWS; i += 2) {
        const __m512i other = half[i + 1 < ROWS ? i + 1 : i];
        const __m512i both = _mm512_add_epi32(_mm512_shuffle_i32x4(half[i], other, 0x88),
                                              _mm512_shuffle_i32x4(half[i], other, 0xdd));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i * kChunk), _mm512_castsi512_si256(both));
        if (i + 1 == ROWS) continue;
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + (i + 1) * kChunk), _mm512_extracti64x4_epi64(both, 1));
    }
}

template <int ROWS>
static void dot_page_rows(const i32* queries, const float* query_scales, i64 d, const i16* const* keys,
                          const i16* const* soon, const float* scales, float* to, float* lanes) {
    alignas(64) i32 sums[ROWS * kChunk];
    for (i64 j = 0; j < kChunk; j += 8) dot_eight<ROWS>(queries, d, keys + j, soon + j, sums + j);
    for (i64 i = 0; i < ROWS; ++i) {
        __m512i sum[kChunk / W];
        MC_UNROLL
        for (i64 j = 0; j < kChunk / W; ++j) sum[j] = _mm512_load_si512(sums + i * kChunk + j * W);
        if (lanes) {
            store_scores<kChunk / W, true>(sum, query_scales[i], scales, to + i * kChunk, lanes + i * W);
        } else {
            store_scores<kChunk / W, false>(sum, query_scales[i], scales, to + i * kChunk, nullptr);
        }
    }
}

// dot_columns for kChunk keys where they lie, and queries from spread_queries: for a few columns, for which
// it does not pay to bring keys side by side. d is a multiple of 32; `soon`: keys to ask for.
static void dot_pages(const i32* queries, const float* query_scales, i64 columns, i64 d, const i16* const* keys,
                      const i16* const* soon, const float* scales, float* to, float* lanes) {
    i64 c = 0;
    const auto some = [&](auto rows) {
        constexpr int ROWS = decltype(rows)::value;
        for (; c + ROWS <= columns; c += ROWS) {
            dot_page_rows<ROWS>(queries + 2 * c * d, query_scales + c, d, keys, soon, scales,
                                to + c * kChunk, lanes ? lanes + c * W : nullptr);
        }
    };
    some(Number<8>());
    some(Number<2>());
    some(Number<1>());
}

#endif
