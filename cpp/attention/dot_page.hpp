// bf16 pages as pairs of 16 bits: keys as integers of a common norm, values as they are, and what comes next asked for
// meanwhile. Included by attention/dot.hpp where the instruction set has the products.

MC_INLINE __mmask16 seen_lanes(u64 mask, int j) { return static_cast<__mmask16>(mask >> (16 * j)); }

MC_INLINE bool has_dot(const KvView& kv) {
    return kv.kind != KvKind::f32 && kv.page_size == kDotPage && kv.d % 16 == 0;
}

MC_INLINE Ahead pages_ahead(const KvView& kv, i64 at) {
    const bool int8 = kv.kind == KvKind::int8;
    const i64 bytes = kv.d * kDotPage * (int8 ? 1 : 2);
    for (i64 i = 0; int8 && i < kDotPage; i += 16) {
        _mm_prefetch(reinterpret_cast<const char*>(kv.key_scales + at * kDotPage + i), _MM_HINT_T1);
        _mm_prefetch(reinterpret_cast<const char*>(kv.value_scales + at * kDotPage + i), _MM_HINT_T1);
    }
    return {static_cast<const char*>(kv.keys) + at * bytes, static_cast<const char*>(kv.values) + at * bytes,
            bytes / 64, 0};
}

// Asks for n more lines of each array.
MC_INLINE void fetch(Ahead& f, i64 n) {
    for (; n > 0 && f.done < f.lines; --n, ++f.done) {
        _mm_prefetch(f.keys + f.done * 64, _MM_HINT_T1);
        _mm_prefetch(f.values + f.done * 64, _MM_HINT_T1);
    }
}

// Pairs (a[i], b[i]) of 16 numbers.
MC_INLINE __m512i pairs_of(const u16* a, const u16* b) {
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(a)));
    const __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(b)));
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

// Pairs of 32 numbers: the first 16, and the others.
struct TwoPairs {
    __m512i first;
    __m512i second;
};

MC_INLINE __m512i interleave_order(int first) {
    const __m512i count = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i low = _mm512_add_epi32(count, _mm512_set1_epi32(first));
    return _mm512_or_si512(low, _mm512_slli_epi32(_mm512_add_epi32(low, _mm512_set1_epi32(32)), 16));
}

MC_INLINE TwoPairs two_pairs_of(const u16* a, const u16* b) {
    const __m512i left = _mm512_loadu_si512(a);
    const __m512i right = _mm512_loadu_si512(b);
    return {_mm512_permutex2var_epi16(left, interleave_order(0), right),
            _mm512_permutex2var_epi16(left, interleave_order(16), right)};
}

// Pairs of the low halves of 32-bit words.
MC_INLINE __m512i join_pairs(__m512i low, __m512i high) {
    return _mm512_mask_blend_epi16(0xaaaaaaaaU, low, _mm512_slli_epi32(high, 16));
}

// 32766 / norm for a sum of squares, 0 where that is nearly 0.
MC_INLINE V norm_inverse(V squares) {
    const __mmask16 some = _mm512_cmp_ps_mask(squares.v, _mm512_set1_ps(1e-36F), _CMP_GT_OQ);
    return {_mm512_maskz_div_ps(some, _mm512_set1_ps(32766.0F), _mm512_sqrt_ps(squares.v))};
}

// Integers nearest to pairs of bf16.
MC_INLINE __m512i whole_pairs(__m512i pairs) {
    const __m512 low = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    const __m512 high = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(-65536)));
    return join_pairs(_mm512_cvtps_epi32(low), _mm512_cvtps_epi32(high));
}

// Codes of two dimensions of 32 keys: `shift` is what measure_keys has found for them.
MC_INLINE TwoPairs key_pairs(const u16* row, __m512i shift) {
    const __m512i left = _mm512_add_epi16(_mm512_loadu_si512(row), shift);
    const __m512i right = _mm512_add_epi16(_mm512_loadu_si512(row + kDotPage), shift);
    return {whole_pairs(_mm512_permutex2var_epi16(left, interleave_order(0), right)),
            whole_pairs(_mm512_permutex2var_epi16(left, interleave_order(16), right))};
}

// Number of the lowest bit that is set, or `none`.
MC_INLINE i64 lowest_bit(u64 bits, i64 none) {
    if (bits == 0) return none;
    i64 i = 0;
    while ((bits >> i & 1) == 0) ++i;
    return i;
}

// Of the first `count` keys of a page: the power of two by which each becomes codes of a norm below 2^15, as
// what to add to its bf16 bits: `shifts` (P); and its inverse, `scales` (P). Numbers whose exponents leave
// their 8 bits so are either next to nothing, or far beyond 32 bits, which conversion makes 0 in the low
// half. Returns how many keys come before the first that is not finite or has a norm of 1e18 or more.
static i64 measure_keys(const u16* keys, i64 d, i64 count, float* scales, u16* shifts, Ahead& ahead) {
    constexpr int N = kDotPage / 16;
    __m512 squares[N];
    MC_UNROLL
    for (int j = 0; j < N; ++j) squares[j] = _mm512_setzero_ps();
    for (i64 i = 0; i < d; i += 2) {
        fetch(ahead, 1);
        MC_UNROLL
        for (int j = 0; j < N; j += 2) {
            const u16* row = keys + i * kDotPage + 16 * j;
            const TwoPairs pairs = two_pairs_of(row, row + kDotPage);
            squares[j] = _mm512_dpbf16_ps(squares[j], (__m512bh)pairs.first, (__m512bh)pairs.first);
            squares[j + 1] = _mm512_dpbf16_ps(squares[j + 1], (__m512bh)pairs.second, (__m512bh)pairs.second);
        }
    }
    u64 bad = 0;
    MC_UNROLL
    for (int j = 0; j < N; ++j) {
        const __m512 seen = _mm512_maskz_mov_ps(seen_lanes(low_bits(count), j), squares[j]);
        const __mmask16 beyond = _mm512_cmp_ps_mask(seen, _mm512_set1_ps(1e36F), _CMP_NLT_UQ);
        bad |= static_cast<u64>(beyond) << (16 * j);
        const __mmask16 some = _mm512_cmp_ps_mask(seen, _mm512_set1_ps(1e-36F), _CMP_GT_OQ);
        const __m512 power = _mm512_sub_ps(_mm512_getexp_ps(_mm512_sqrt_ps(seen)), _mm512_set1_ps(14.0F));
        _mm512_storeu_ps(scales + 16 * j, _mm512_maskz_scalef_ps(some, _mm512_set1_ps(1.0F), power));
        const __m512i shift = _mm512_maskz_cvtps_epi32(some, _mm512_mul_ps(power, _mm512_set1_ps(-128.0F)));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(shifts + 16 * j), _mm512_cvtepi32_epi16(shift));
    }
    return lowest_bit(bad, count);
}

// The first `count` keys of a page, as many as measure_keys returns; what else there is becomes any number.
// Without `codes` keys are pairs of bf16 as they are.
static i64 load_dot_keys(const u16* from, i64 d, i64 count, bool codes, const DotPage& page, Ahead& ahead) {
    u16 shifts[kDotPage];
    const i64 usable = measure_keys(from, d, count, page.scales, shifts, ahead);
    for (i64 j = 0; j < kDotPage; j += 32) {
        const __m512i shift = _mm512_loadu_si512(shifts + j);
        for (i64 i = 0; i < d; i += 2) {
            fetch(ahead, 1);
            const u16* row = from + i * kDotPage + j;
            const TwoPairs pairs = codes ? key_pairs(row, shift) : two_pairs_of(row, row + kDotPage);
            _mm512_storeu_si512(page.keys + i / 2 * kDotPage + j, pairs.first);
            _mm512_storeu_si512(page.keys + i / 2 * kDotPage + j + 16, pairs.second);
        }
    }
    return usable;
}

// Number of the first of the values (P, d) from `least` to `count` that is not finite, or `count`.
static i64 finite_values(const u16* values, i64 d, i64 least, i64 count) {
    const __m512i exponent = _mm512_set1_epi16(0x7f80);
    for (i64 i = least * d; i < count * d; i += 32) {
        const __mmask32 rest = count * d - i >= 32 ? 0xffffffffU : 0xffffU;
        const __m512i bits = _mm512_and_si512(_mm512_maskz_loadu_epi16(rest, values + i), exponent);
        const __mmask32 bad = _mm512_cmpeq_epi16_mask(bits, exponent);
        if (bad) return (i + lowest_bit(bad, 0)) / d;
    }
    return count;
}

// Loads page number `at` (pages and heads counted together) for rows that see `least` to `count` of its tokens.
// Returns how many of these a row may see to be computed from it: weights of 0 must not meet infinities, so
// values behind these tokens become 0.
static i64 load_dot_page(const KvView& kv, i64 at, i64 least, i64 count, bool codes, const DotPage& page,
                         Ahead& ahead) {
    const i64 d = kv.d;
    const u16* from = static_cast<const u16*>(kv.values) + at * d * kDotPage;
    count = load_dot_keys(static_cast<const u16*>(kv.keys) + at * d * kDotPage, d, count, codes, page, ahead);
    if (least < count) count = finite_values(from, d, least, count);
    for (i64 t = 0; t < kDotPage; t += 2) {
        fetch(ahead, 1);
        const u16* even = from + t * d;
        i32* to = page.values + t / 2 * d;
        const __m512i seen = _mm512_set1_epi32(t + 1 < count ? -1 : t < count ? 0xffff : 0);
        i64 i = 0;
        for (; i + 32 <= d; i += 32) {
            const TwoPairs pairs = two_pairs_of(even + i, even + d + i);
            _mm512_storeu_si512(to + i, _mm512_and_si512(pairs.first, seen));
            _mm512_storeu_si512(to + i + 16, _mm512_and_si512(pairs.second, seen));
        }
        if (i < d) _mm512_storeu_si512(to + i, _mm512_and_si512(pairs_of(even + i, even + d + i), seen));
    }
    return count;
}
