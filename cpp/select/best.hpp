// Scores of blocks, and the best of them (InfLLM v2, steps 3 and 4). Included by select/select.hpp.
//
// Scores are 0 or more, or -1 for none: as integers their bits have the same order.

#if defined(MC_HAS_AVX512)
// Scores of the first blocks, four keys each and `before` earlier ones that overlap; returns how many.
static i64 score_fours(const float* scores, i64 visible, i64 before, i64 blocks, i32* found) {
    const __m512i firsts = _mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12);
    i64 b = 0;
    for (; 4 * b + W <= visible && b + 4 <= blocks; b += 4) {
        const float* from = scores + 4 * b;
        __m512 most = _mm512_max_ps(_mm512_loadu_ps(from), _mm512_set1_ps(-1.0F));  // so too for NaN
        most = _mm512_max_ps(most, _mm512_permute_ps(most, 0xb1));
        most = _mm512_max_ps(most, _mm512_permute_ps(most, 0x4e));
        for (i64 i = 1; i <= before; ++i) most = _mm512_max_ps(_mm512_loadu_ps(from - i), most);
        const __m512i four = _mm512_permutexvar_epi32(firsts, _mm512_castps_si512(most));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(found + b), _mm512_castsi512_si128(four));
    }
    return b;
}
#else
MC_INLINE i64 score_fours(const float*, i64, i64, i64, i32*) { return 0; }
#endif

// A block's score is the largest of the visible keys that overlap it, -1 for none.
static void score_blocks(const SelectArgs& a, float* scores, i64 visible, i64 blocks, i32* found) {
    const i64 per_block = a.kv.page_size / a.key_shape.stride;
    const i64 before = a.key_shape.size / a.key_shape.stride - 1;
    i64 b = 0;
    if (per_block == 4 && before <= W) {
        store(scores - W, set1(-1.0F));
        b = score_fours(scores, visible, before, blocks, found);
    }
    for (; b < blocks; ++b) {
        const i64 from = b * per_block - before;
        const i64 end = least((b + 1) * per_block, visible);
        float most = -1.0F;
        for (i64 j = from < 0 ? 0 : from; j < end; ++j) most = scores[j] > most ? scores[j] : most;
        memcpy(found + b, &most, sizeof most);
    }
}

MC_INLINE i64 lowest_bit(u32 mask) {
#if defined(__GNUC__)
    return __builtin_ctz(mask);
#else
    i64 bit = 0;
    while ((mask >> bit & 1U) == 0) ++bit;
    return bit;
#endif
}

// Calls visit(i) for every x[i] >= low, in order.
template <class Visit>
MC_INLINE void each_from(const i32* x, i64 n, i32 low, Visit visit) {
    i64 i = 0;
#if defined(MC_HAS_AVX512)
    for (; i + W <= n; i += W) {
        u32 mask = _mm512_cmpge_epi32_mask(_mm512_loadu_si512(x + i), _mm512_set1_epi32(low));
        for (; mask != 0; mask &= mask - 1) visit(i + lowest_bit(mask));
    }
#endif
    for (; i < n; ++i) {
        if (x[i] >= low) visit(i);
    }
}

MC_INLINE i64 count_from(const i32* x, i64 n, i32 low) {
    i64 i = 0;
    i32 count = 0;
#if defined(MC_HAS_AVX512)
    __m512i counts = _mm512_setzero_si512();
    for (; i + W <= n; i += W) {
        const __mmask16 mask = _mm512_cmpge_epi32_mask(_mm512_loadu_si512(x + i), _mm512_set1_epi32(low));
        counts = _mm512_mask_add_epi32(counts, mask, counts, _mm512_set1_epi32(1));
    }
    count = _mm512_reduce_add_epi32(counts);
#endif
    for (; i < n; ++i) count += x[i] >= low;
    return count;
}

// Calls visit(i) for the `wanted` largest of x (n) in order of i, on a tie for the first ones; 0 < wanted < n.
template <class Visit>
MC_INLINE void each_best(const i32* x, i64 n, i64 wanted, Visit visit) {
    i32 least_of = x[0];
    i32 most_of = x[0];
    for (i64 i = 1; i < n; ++i) {
        least_of = x[i] < least_of ? x[i] : least_of;
        most_of = x[i] > most_of ? x[i] : most_of;
    }
    i64 low = least_of;            // at least so many as are wanted are `low` or more
    i64 high = i64(most_of) + 1;   // fewer are `high` or more: so many as `above`
    i64 above = 0;
    i64 ties = n;
    for (bool exact = false; !exact && high - low > 1;) {
        const i64 middle = low + (high - low) / 2;
        const i64 count = count_from(x, n, static_cast<i32>(middle));
        exact = count == wanted;
        if (count >= wanted) {
            low = middle;
        } else {
            high = middle;
            above = count;
        }
    }
    if (high - low == 1) ties = wanted - above;
    each_from(x, n, static_cast<i32>(low), [&](i64 i) {
        if (x[i] > low || ties-- > 0) visit(i);
    });
}

// Step 4: writes the chosen blocks of a query whose own block is `own`, ascending and padded with -1, and returns
// how many. scores: bits of blocks' scores; not read where the budget covers every block.
static i64 choose_blocks(const SelectArgs& a, const i32* scores, i64 own, i32* blocks) {
    const i64 first_local = own + 1 > a.local_blocks ? own + 1 - a.local_blocks : 0;
    const i64 init = least(a.init_blocks, first_local);
    const i64 candidates = first_local - init;
    const i64 wanted = least(a.topk - a.init_blocks, candidates);
    i64 count = 0;
    const auto choose = [&](i64 b) { blocks[count++] = static_cast<i32>(b); };
    for (i64 b = 0; b < init; ++b) choose(b);
    if (wanted == candidates) {
        for (i64 b = init; b < first_local; ++b) choose(b);
    } else if (wanted > 0) {
        each_best(scores + init, candidates, wanted, [&](i64 i) { choose(init + i); });
    }
    for (i64 b = first_local; b <= own; ++b) choose(b);
    const i64 chosen = count;
    while (count < a.topk + a.local_blocks) choose(-1);
    return chosen;
}
