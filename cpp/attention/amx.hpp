// Attention to bf16 pages on matrix tiles (simd/tiles.hpp), 16 queries at a time. Included by attention/attention.hpp; stubs
// where there are no tiles.
//
// Scores: keys are bf16 and taken as they are; a query is the sum of two bf16 numbers, which is off by 2^-17 at most
// (one alone would cost up to a percent of the output, see docs/log.md). Weighted sum: weights are rounded to
// bf16, their total is of the rounded ones. Which queries and pages go to float32 is as in attention/dot.hpp.
//
// Queries that lie together are read and their sums written in place; others are gathered.
// On paper, 16 queries, d = 128: scores 32 products, weighted sums 16, of 16 cycles: 770 cycles; beside them
// 48 loads of operands from L1 (8 cycles each), 8 tiles of sums to and fro (250), and exponentials (500), which overlap in
// part: 1,000 to 1,500 cycles, half to three quarters of the peak. VNNI takes 4,100 for its products alone.

#if !defined(MC_HAS_TILES)

struct HeldTiles {};
struct AmxScratch {};
MC_INLINE bool has_tiles(const KvView&) { return false; }
MC_INLINE i64 amx_floats(i64, i64) { return 0; }
MC_INLINE AmxScratch amx_scratch(float*, i64, HeldTiles*) { return {}; }
MC_INLINE void load_amx_queries(const float*, i64, i64, const AmxScratch&) {}
MC_INLINE void attend_amx(const DotScratch&, const AmxScratch&, i64, i64, i64, const DotSeen&, const Partial&,
                          Ahead&) {}

#else

using HeldTiles = Tiles;

struct AmxScratch {
    HeldTiles* tiles;
    u16* queries;       // (2, m, d): the nearest bf16, then what is left
    u16* some_queries;  // (2, 16, d), gathered
    float* some_sums;   // (16, d)
};

MC_INLINE bool has_tiles(const KvView& kv) { return kv.kind == KvKind::bf16 && has_dot(kv) && kv.d % kTileDepth == 0; }

MC_INLINE i64 amx_floats(i64 m, i64 d) { return (m + 2 * kTileSide) * d; }

MC_INLINE AmxScratch amx_scratch(float* base, i64 d, HeldTiles* tiles) {
    AmxScratch s;
    s.tiles = tiles;
    s.some_sums = base;
    s.some_queries = reinterpret_cast<u16*>(base + kTileSide * d);
    s.queries = s.some_queries + 2 * kTileSide * d;
    return s;
}

// m queries (m, d), already divided by sqrt(d).
static void load_amx_queries(const float* from, i64 m, i64 d, const AmxScratch& s) {
    for (i64 i = 0; i < m * d; i += W) {
        const V all = load(from + i);
        store_bf16(s.queries + i, all);
        store_bf16(s.queries + m * d + i, sub(all, load_bf16(s.queries + i)));
    }
}

// 16 queries of a tile: where their two parts and their sums are.
struct AmxQueries {
    const u16* parts[2];
    float* sums;
};

// Scores (16, P).
static void amx_scores(Tiles& t, const AmxQueries& q, i64 d, const i32* keys, float* scores) {
    constexpr i64 kRow = kDotPage * 4;
    t.zero<0>();
    t.zero<1>();
    t.zero<2>();
    t.zero<3>();
    // One part after the other: each sum is then added to once in four products, 64 cycles, and a product takes 52.
    for (const u16* part : q.parts) {
        for (i64 e = 0; e < d; e += kTileDepth) {
            const i32* at = keys + e / 2 * kDotPage;
            t.load<4>(part + e, 2 * d);
            t.load<6>(at, kRow);
            t.dot_bf16<0, 4, 6>();
            t.load<7>(at + 16, kRow);
            t.dot_bf16<1, 4, 7>();
            t.load<6>(at + 32, kRow);
            t.dot_bf16<2, 4, 6>();
            t.load<7>(at + 48, kRow);
            t.dot_bf16<3, 4, 7>();
        }
    }
    t.store<0>(scores, kRow);
    t.store<1>(scores + 16, kRow);
    t.store<2>(scores + 32, kRow);
    t.store<3>(scores + 48, kRow);
}

// sums (16, d), columns [e, e + 16 * N), += weights (16, P) times values; N is 2 or 4.
template <int N>
static void amx_values(Tiles& t, const u16* weights, const i32* values, i64 d, i64 e, float* sums) {
    sums += e;
    t.load<0>(sums, 4 * d);
    t.load<1>(sums + 16, 4 * d);
    if constexpr (N > 2) t.load<2>(sums + 32, 4 * d);
    if constexpr (N > 2) t.load<3>(sums + 48, 4 * d);
    for (i64 first = 0; first < kDotPage; first += kTileDepth) {
        const i32* at = values + first / 2 * d + e;
        t.load<4>(weights + first, 2 * kDotPage);
        t.load<6>(at, 4 * d);
        t.dot_bf16<0, 4, 6>();
        t.load<7>(at + 16, 4 * d);
        t.dot_bf16<1, 4, 7>();
        if constexpr (N > 2) {
            t.load<6>(at + 32, 4 * d);
            t.dot_bf16<2, 4, 6>();
            t.load<7>(at + 48, 4 * d);
            t.dot_bf16<3, 4, 7>();
        }
    }
    t.store<0>(sums, 4 * d);
    t.store<1>(sums + 16, 4 * d);
    if constexpr (N > 2) t.store<2>(sums + 32, 4 * d);
    if constexpr (N > 2) t.store<3>(sums + 48, 4 * d);
}

MC_INLINE bool lie_together(const i32* who, i64 count) {
    return count == kTileSide && who[count - 1] - who[0] == count - 1;
}

// Queries who[0] to who[count - 1], at most 16. Of `all` in the tile.
static AmxQueries gather_queries(const AmxScratch& s, const i32* who, i64 count, i64 all, i64 d, float* sums) {
    if (lie_together(who, count)) {
        const u16* parts = s.queries + who[0] * d;
        return {{parts, parts + all * d}, sums + who[0] * d};
    }
    const size_t half = static_cast<size_t>(d) * sizeof(u16), whole = static_cast<size_t>(d) * sizeof(float);
    for (i64 i = 0; i < kTileSide; ++i) {
        const i64 from = who[i < count ? i : 0];  // rows that are not there: anything finite
        memcpy(s.some_queries + i * d, s.queries + from * d, half);
        memcpy(s.some_queries + (kTileSide + i) * d, s.queries + (all + from) * d, half);
        memcpy(s.some_sums + i * d, sums + from * d, whole);
    }
    return {{s.some_queries, s.some_queries + kTileSide * d}, s.some_sums};
}

template <bool WHOLE>
static void soften_amx(__m512* score, u64 mask, float* sums, i64 d, float* top, float* total, u16* weights) {
    soften_scores<WHOLE>(score, 1.0F, mask, sums, d, top, total, weights);
}

// The first m queries of dot.who read the loaded page, whose keys are as they were. `all`: queries of the tile.
static void attend_amx(const DotScratch& dot, const AmxScratch& s, i64 m, i64 all, i64 d, const DotSeen& seen,
                       const Partial& p, Ahead& ahead) {
    alignas(64) float scores[kTileSide * kDotPage];
    alignas(64) u16 weights[kTileSide * kDotPage] = {};
    const i64 lines = (ahead.lines - ahead.done + m / kTileSide) / (m / kTileSide + 1);
    for (i64 first = 0; first < m; first += kTileSide) {
        fetch(ahead, lines);
        const i32* who = dot.who + first;
        const i64 count = m - first < kTileSide ? m - first : kTileSide;
        const AmxQueries q = gather_queries(s, who, count, all, d, p.sums);
        amx_scores(*s.tiles, q, d, dot.page.keys, scores);
        for (i64 i = 0; i < count; ++i) {
            __m512 score[kDotPage / 16];
            for (int j = 0; j < kDotPage / 16; ++j) score[j] = _mm512_load_ps(scores + i * kDotPage + 16 * j);
            const u64 mask = seen.mask(who[i]);
            const auto soften_some = mask == ~u64(0) ? soften_amx<true> : soften_amx<false>;
            soften_some(score, mask, q.sums + i * d, d, p.top + who[i], p.total + who[i], weights + i * kDotPage);
        }
        i64 e = 0;
        for (; e + 64 <= d; e += 64) amx_values<4>(*s.tiles, weights, dot.page.values, d, e, q.sums);
        if (e < d) amx_values<2>(*s.tiles, weights, dot.page.values, d, e, q.sums);
        if (lie_together(who, count)) continue;
        for (i64 i = 0; i < count; ++i) {
            memcpy(p.sums + who[i] * d, s.some_sums + i * d, static_cast<size_t>(d) * sizeof(float));
        }
    }
}

#endif
