// Scores of compressed keys held as int16 codes, by dot products of pairs (vpdpwssd). Included by
// select.hpp; empty but for stubs where the instruction set lacks them.
//
// Queries become int16 codes of norm 32766 too, so that no product leaves 32 bits: sums of integers are
// exact, and a score has the same bits in a tile and in a row. Scores are in units of ln 2: a weight is a
// power of two.

using i16 = int16_t;

#if !defined(MC_HAS_BF16_DOT) || !defined(MC_HAS_VNNI)

template <bool DOT>
MC_INLINE V power(V a) {
    return exp(a);
}
MC_INLINE void store_dot_query(const float*, i64, i32*, i64, float*) {}
MC_INLINE void store_dot_row(const float*, i64, i16*, float*) {}
MC_INLINE void score_dot(const i16* const*, const float*, i64, i64, const i32*, i64, const float*, i64, float*,
                         i64) {}

#else

// 2^a within 3e-6 of itself, for a <= 0.
MC_INLINE __m512 power_of_two(__m512 a) {
    const __m512 r = _mm512_reduce_ps(a, 1);  // a - floor(a)
    __m512 p = _mm512_set1_ps(0.0135206F);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.05203743F));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.24142749F));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.69300662F));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.00000252F));
    return _mm512_scalef_ps(p, a);  // by floor(a)
}

// The weight of a score: e^a, or where scores are in units of ln 2, 2^a.
template <bool DOT>
MC_INLINE V power(V a) {
    if constexpr (DOT) return {power_of_two(a.v)};
    return exp(a);
}

// What to multiply a query (d) by for codes; *scale: what codes times it are, in units of ln 2. NaN, and
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
    *scale = known ? norm * static_cast<float>(1.44269504 / kCodeNorm) : NAN;
    return set1(known && norm >= kTiny ? static_cast<float>(kCodeNorm) / norm : 0.0F);
}

MC_INLINE __m512i query_codes(const float* x, V inverse, int n) {
    const __m512 product = _mm512_mul_ps(load_some(x, n).v, inverse.v);
    return _mm512_maskz_cvtps_epi32(_mm512_cmp_ps_mask(product, product, _CMP_ORD_Q), product);
}

// Stores a query (d) as a column of pairs (d / 2), `step` apart.
static void store_dot_query(const float* x, i64 d, i32* to, i64 step, float* scale) {
    const V inverse = dot_query_inverse(x, d, scale);
    each_vector(d, [&](i64 i, int n) {
        alignas(64) i32 codes[W];
        _mm512_store_si512(codes, query_codes(x + i, inverse, n));
        for (int e = 0; e < n; e += 2) {
            to[(i + e) / 2 * step] = (codes[e] & 0xffff) | static_cast<i32>(static_cast<u32>(codes[e + 1]) << 16);
        }
    });
}

// Stores a query (d) as a row.
static void store_dot_row(const float* x, i64 d, i16* to, float* scale) {
    const V inverse = dot_query_inverse(x, d, scale);
    each_vector(d, [&](i64 i, int n) {
        _mm512_mask_cvtepi32_storeu_epi16(to + i, lanes(n), query_codes(x + i, inverse, n));
    });
}

// scores (ROWS, COLS vectors) of codes, the last vector with `tail` lanes. See score_dot.
template <int ROWS, int COLS>
MC_INLINE void score_dot_block(const i16* const* rows, const float* row_scales, i64 d, const i32* pairs, i64 step,
                               const float* scales, int tail, float* scores, i64 width) {
    __m512i sum[ROWS][COLS];
    const __mmask16 mask = lanes(tail);
    MC_UNROLL
    for (int i = 0; i < ROWS; ++i) {
        MC_UNROLL
        for (int j = 0; j < COLS; ++j) sum[i][j] = _mm512_setzero_si512();
    }
    for (i64 e = 0; e < d; e += 2, pairs += step) {
        __m512i right[COLS];
        MC_UNROLL
        for (int j = 0; j < COLS; ++j) {
            right[j] = j == COLS - 1 ? _mm512_maskz_loadu_epi32(mask, pairs + 16 * j)
                                     : _mm512_loadu_si512(pairs + 16 * j);
        }
        MC_UNROLL
        for (int i = 0; i < ROWS; ++i) {
            i32 pair;
            memcpy(&pair, rows[i] + e, sizeof pair);
            const __m512i left = _mm512_set1_epi32(pair);
            MC_UNROLL
            for (int j = 0; j < COLS; ++j) sum[i][j] = add_word_products(sum[i][j], left, right[j]);
        }
    }
    MC_UNROLL
    for (int j = 0; j < COLS; ++j) {
        const __mmask16 own = j == COLS - 1 ? mask : lanes(W);
        const __m512 scale = _mm512_maskz_loadu_ps(own, scales + 16 * j);
        MC_UNROLL
        for (int i = 0; i < ROWS; ++i) {
            // The product of both scales first: the same bits whichever side the rows are.
            const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(row_scales[i]));
            _mm512_mask_storeu_ps(scores + i * width + 16 * j, own, _mm512_mul_ps(_mm512_cvtepi32_ps(sum[i][j]), both));
        }
    }
}

template <int ROWS>
static void score_dot_rows(const i16* const* rows, const float* row_scales, i64 d, const i32* pairs, i64 step,
                           const float* scales, i64 n, float* scores, i64 width) {
    i64 c = 0;
    for (; c + 2 * W <= n; c += 2 * W) {
        score_dot_block<ROWS, 2>(rows, row_scales, d, pairs + c, step, scales + c, W, scores + c, width);
    }
    for (; c < n; c += W) {
        const int tail = n - c < W ? static_cast<int>(n - c) : W;
        score_dot_block<ROWS, 1>(rows, row_scales, d, pairs + c, step, scales + c, tail, scores + c, width);
    }
}

// scores (m, n), `width` apart: the products of m rows of d codes and n columns of pairs (d / 2, n), `step`
// apart, times their scales. One side holds kernels and the other queries.
static void score_dot(const i16* const* rows, const float* row_scales, i64 m, i64 d, const i32* pairs, i64 step,
                      const float* scales, i64 n, float* scores, i64 width) {
    i64 i = 0;
    for (; i + 8 <= m; i += 8) {
        score_dot_rows<8>(rows + i, row_scales + i, d, pairs, step, scales, n, scores + i * width, width);
    }
    for (; i + 2 <= m; i += 2) {
        score_dot_rows<2>(rows + i, row_scales + i, d, pairs, step, scales, n, scores + i * width, width);
    }
    if (i < m) score_dot_rows<1>(rows + i, row_scales + i, d, pairs, step, scales, n, scores + i * width, width);
}

#endif
