// Scores of compressed keys held as int16 codes, by dot products of pairs (vpdpwssd). Included by
// select.hpp; empty but for stubs where the instruction set lacks them.
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

#else

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

// Scores (ROWS columns, COLS vectors of kernels), kChunk apart, of a chunk's pairs (d / 2, kChunk); or where
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
        __m512 total = PLAIN ? _mm512_loadu_ps(lanes + i * W) : _mm512_setzero_ps();
        MC_UNROLL
        for (int j = 0; j < COLS; ++j) {
            const __m512 both = _mm512_mul_ps(_mm512_loadu_ps(scales + 16 * j), _mm512_set1_ps(query_scales[i]));
            __m512 score = _mm512_mul_ps(_mm512_cvtepi32_ps(sum[i][j]), both);
            if (PLAIN) {
                score = power_of_two(score);
                total = _mm512_add_ps(total, score);
            }
            _mm512_storeu_ps(to + i * kChunk + 16 * j, score);
        }
        if (PLAIN) _mm512_storeu_ps(lanes + i * W, total);
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
    for (; c + 8 <= columns; c += 8) {
        dot_rows<8, 2, PLAIN>(queries + c * d, query_scales + c, d, pairs, scales, to + c * kChunk, lanes + c * W);
    }
    for (; c + 2 <= columns; c += 2) {
        dot_rows<2, 4, PLAIN>(queries + c * d, query_scales + c, d, pairs, scales, to + c * kChunk, lanes + c * W);
    }
    if (c < columns) {
        dot_rows<1, 4, PLAIN>(queries + c * d, query_scales + c, d, pairs, scales, to + c * kChunk, lanes + c * W);
    }
}

// Scores (columns, kChunk) of a chunk of kernels, or with `lanes` (columns, W) their powers of two, whose sums go
// there. Queries (columns, d) of codes, kernels (d / 2, kChunk) of pairs.
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

#endif
