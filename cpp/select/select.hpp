// Choosing blocks (InfLLM v2, steps 2 to 4). Included by each instruction set's unit.
//
// A tile is a few query rows of one sequence with the heads of one kv head; its columns are its (row, head)
// pairs. Lanes are compressed keys ("keys" below), kChunk of them side by side, so that sums over heads and
// running sums over keys go lane by lane. A unit of keys has what its powers are relative to, and their
// sum, for every column, and units are joined in order. All of that depends on the row, the head and the
// unit alone: a row chooses the same blocks in any tile and with any number of threads.

static constexpr i64 kChunk = 64;           // keys side by side
static constexpr i64 kUnit = 8 * kChunk;    // keys summed together
static constexpr i64 kKeysAhead = 2 * kChunk;   // how far ahead keys are asked for
static constexpr float kLeast = -3e38F;     // below any score, yet not infinite: no NaN from it
static constexpr float kTame = 104.0F;      // scores to +-kTame and sums of their powers of two are floats
static constexpr float kPlainScales = 100.0F / static_cast<float>(kCodeNorm * kCodeNorm);  // no score beyond 100
static constexpr i64 kTileBytes = 512 << 10;  // powers of a tile: half of a second-level cache
static constexpr i64 kMaxTileRows = 16;

MC_INLINE i64 round_up(i64 n, i64 multiple) { return (n + multiple - 1) / multiple * multiple; }
MC_INLINE float first_lane(V a) {
    float lane[W];
    store(lane, a);
    return lane[0];
}
// a * 2^by for whole `by`, and 0 or infinity where that is far from 1.
MC_INLINE V shifted(V a, float by) { return times_power(a, min(set1(250.0F), max(set1(-250.0F), set1(by)))); }
MC_INLINE i64 least(i64 a, i64 b) { return a < b ? a : b; }
MC_INLINE i64 greatest(i64 a, i64 b) { return a > b ? a : b; }

#include "select/dot.hpp"

// Compressed keys of one length that a tile scores.
struct KeySet {
    KeyShape shape;
    const Compressed* store;
    i64 visible;          // that some row of the tile sees
    i64 paged;            // of these, that lie in pages: but for those that end in a tree all
    const float* codes;   // chunks of (depth, kChunk), see chunk_floats; null: in pages only
    const float* scales;  // of codes, as many as chunks hold
    i64 units() const { return (visible + kUnit - 1) / kUnit; }
};

struct SelectTile {
    const i32* table;
    i64 row;      // first row of the tile
    i64 rows;     // its rows
    i64 head;     // kv head
    i64 columns;  // rows * group: column c is head c % group of row c / group
    i64 blocks;   // 0: nothing to score
    i64 first;    // first row of its sequence
    KeySet fine;
    KeySet coarse;  // none visible without the LSE approximation
};

// How many keys of a set a row of a tile sees.
MC_INLINE i64 seen_keys(const SelectArgs& a, const SelectTile& t, const KeySet& k, i64 r) {
    return num_visible(k.shape, a.step.angles[t.row + r]);
}

// What is known of a tile's keys. (units, columns): `tops`, what powers are relative to, and `sums`.
struct Weights {
    float* powers;  // (chunks, columns, kChunk)
    float* tops;
    float* sums;
    float* coarse_tops;
    float* coarse_sums;
    float* top;      // (columns) of all units
    float* inverse;  // (columns) 1 / sum
    float* scores;   // (visible) of compressed keys, and W before them
    i32* found;      // (blocks) scores as bits, which have the same order
    i64* left;       // units still to be measured
};

struct SelectScratch {
    float* queries;   // (columns, d), floats or codes
    float* scales;    // (columns) of codes
    i32* spread;      // (columns, 2 d) codes, see spread_queries
    float* lanes;     // (columns, W) sums
    float* chunk;     // (depth, kChunk)
    float* loaded;    // (kChunk, d), where keys are not float32
    float* powers;    // (kUnit / kChunk, columns, kChunk) of coarse keys
    float* unit;      // (kUnit) scales of keys
    float* own;       // (group, kChunk) scores of keys that end in a tree
    i64* numbers;     // (kUnit + kKeysAhead) of keys
    const i16** keys; // (kUnit + kKeysAhead) where they lie, if codes are read there
    Compressed paths[2];  // of a step over trees: keys that end in row n of kv head h, as n * hkv + h; coarse ones
};

// Floats of a chunk: keys side by side, d floats or d / 2 pairs of codes each.
MC_INLINE i64 chunk_floats(bool dot, i64 d) { return (dot ? d / 2 : d) * kChunk; }

#include "select/load.hpp"

#include "select/best.hpp"

// Raw scores to powers for the keys of a unit, column by column; what a row does not see counts 0.
template <bool DOT>
static void take_powers(const SelectArgs& a, const SelectTile& t, const KeySet& k, i64 unit, float* powers,
                        float* tops, float* sums) {
    const i64 group = a.hq / a.kv.hkv;
    for (i64 c = 0; c < t.columns; ++c) {
        const i64 seen = seen_keys(a, t, k, c / group) - unit * kUnit;
        const i64 count = seen < 0 ? 0 : least(seen, kUnit);
        const auto at = [&](i64 j) { return powers + (j / kChunk * t.columns + c) * kChunk + j % kChunk; };
        for (i64 j = count; j < round_up(count, W); ++j) *at(j) = *at(count - 1);
        V most = set1(kLeast);
        V fewest = set1(-kLeast);
        for (i64 j = 0; j < count; j += W) {
            most = max(load(at(j)), most);
            fewest = min(load(at(j)), fewest);
        }
        const float top = hmax(most);
        const bool tame = top <= kTame && hmax(sub(zero(), fewest)) <= kTame;
        // Whole numbers: what is relative to another one keeps its bits.
        tops[c] = tame || count == 0 ? 0.0F : first_lane(nearest(set1(top < -kLeast ? top : -kLeast)));
        for (i64 j = count; j < round_up(count, W); ++j) *at(j) = -INFINITY;
        V sum = zero();
        for (i64 j = 0; j < count; j += W) {
            const V power = power_of<DOT>(sub(load(at(j)), set1(tops[c])));
            store(at(j), power);
            sum = add(sum, power);
        }
        sums[c] = hsum(sum);
    }
}

// Scores (columns, kChunk) of the keys c to c + kChunk - 1 of a unit, or powers as dot_columns has them.
// Those that are not side by side yet: s.numbers or s.keys have the unit's and the next ones.
template <bool DOT>
static void score_chunk(const SelectArgs& a, const SelectTile& t, const SelectScratch& s, const KeySet& k, i64 unit,
                        i64 c, const float* scales, float* lanes, float* to) {
    const i64 d = a.kv.d;
    const float* codes = s.chunk;
    if (k.codes) {
        codes = k.codes + (unit * kUnit + c) / kChunk * chunk_floats(DOT, d);
    } else {
        if (reads_pages(DOT, d)) {
            dot_pages(s.spread, s.scales, t.columns, d, s.keys + c, s.keys + c + kKeysAhead, scales, to, lanes);
            return;
        }
        const i64 count = least(k.visible - unit * kUnit - c, kChunk);
        const i64 known = least(k.visible - unit * kUnit, kUnit + kKeysAhead);
        ask_for(k, s.numbers + c + kKeysAhead, least(known - c - kKeysAhead, kChunk), d);
        gather_chunk<DOT>(a, k, s.numbers + c, count, s.loaded, s.chunk);
    }
    if (DOT) {
        dot_columns(s.queries, s.scales, t.columns, d, codes, scales, to, lanes);
    } else {
        tile(t.columns, kChunk, d, s.queries, d, codes, kChunk, to, kChunk, false);
    }
}

// Of the keys j to j + kChunk - 1 the scores (columns, kChunk) of those that end in a tree: of each row on its own path.
template <bool DOT>
static void score_paths(const SelectArgs& a, const SelectTile& t, const SelectScratch& s, const KeySet& k, i64 j,
                        float* to) {
    const i64 d = a.kv.d;
    const i64 group = a.hq / a.kv.hkv;
    const i64 base = a.step.positions[t.first];
    KeySet own = k;
    own.store = &s.paths[k.store == &a.kv.coarse];
    const i64 begin = greatest(j, k.paged);
    for (i64 r = 0; r < t.rows; ++r) {
        const i64 count = least(seen_keys(a, t, k, r), j + kChunk) - begin;
        if (count <= 0) continue;
        for (i64 i = 0; i < count; ++i) {
            const i64 last = (begin + i) * k.shape.stride + k.shape.size - 1;
            s.numbers[i] = (t.first + nth_bit(a.step.ancestors[t.row + r], last - base)) * a.kv.hkv + t.head;
        }
        gather_chunk<DOT>(a, own, s.numbers, count, s.loaded, s.chunk);
        const float* queries = s.queries + r * group * d / (DOT ? 2 : 1);
        if (DOT) {
            gather_scales(own, s.numbers, count, s.unit);
            dot_columns(queries, s.scales + r * group, group, d, s.chunk, s.unit, s.own, nullptr);
        } else {
            tile(group, kChunk, d, queries, d, s.chunk, kChunk, s.own, kChunk, false);
        }
        for (i64 g = 0; g < group; ++g) {
            float* row = to + (r * group + g) * kChunk + begin - j;
            memcpy(row, s.own + g * kChunk, static_cast<size_t>(count) * sizeof(float));
        }
    }
}

// Powers (chunks, columns, kChunk) of a unit of keys, what they are relative to, and their sums (columns).
template <bool DOT>
static void measure_unit(const SelectArgs& a, const SelectTile& t, const SelectScratch& s, const KeySet& k,
                         i64 unit, float* powers, float* tops, float* sums) {
    const i64 first = unit * kUnit;
    const i64 count = least(k.visible - first, kUnit);
    const float* scales = s.unit;
    if (k.codes) {
        scales = k.scales + first;
    } else if (reads_pages(DOT, a.kv.d)) {
        find_codes(a, t.table, t.head, k, first, least(k.visible - first, kUnit + kKeysAhead), s.keys, s.unit);
    } else {
        find_keys(a, t.table, t.head, k, first, least(k.visible - first, kUnit + kKeysAhead), s.numbers);
        if (unit == 0) ask_for(k, s.numbers, least(count, kKeysAhead), a.kv.d);
        if (DOT) gather_scales(k, s.numbers, count, s.unit);
    }
    const bool plain = DOT && first + kUnit <= least(k.paged, seen_keys(a, t, k, 0)) &&
                       largest(s.scales, t.columns) * largest(scales, kUnit) <= kPlainScales;
    for (i64 i = 0; i < t.columns * W; ++i) s.lanes[i] = 0.0F;
    for (i64 c = 0; c < count; c += kChunk) {
        float* to = powers + c * t.columns;
        if (first + c < k.paged) score_chunk<DOT>(a, t, s, k, unit, c, scales + c, plain ? s.lanes : nullptr, to);
        if (first + c + kChunk > k.paged && k.paged < k.visible) score_paths<DOT>(a, t, s, k, first + c, to);
    }
    if (!plain) {
        take_powers<DOT>(a, t, k, unit, powers, tops, sums);
        return;
    }
    for (i64 c = 0; c < t.columns; ++c) {
        tops[c] = 0.0F;
        sums[c] = hsum(load(s.lanes + c * W));
    }
}

// What unit number u, coarse ones first, has to say.
template <bool DOT>
static void measure(const SelectArgs& a, const SelectTile& t, const SelectScratch& s, const Weights& w, i64 u) {
    const i64 coarse = t.coarse.units();
    if (u < coarse) {
        measure_unit<DOT>(a, t, s, t.coarse, u, s.powers, w.coarse_tops + u * t.columns,
                          w.coarse_sums + u * t.columns);
        return;
    }
    u -= coarse;
    measure_unit<DOT>(a, t, s, t.fine, u, w.powers + u * kUnit * t.columns, w.tops + u * t.columns,
                      w.sums + u * t.columns);
}

// Joins the units of every column; returns whether powers are all relative to 0.
static bool join_units(const SelectArgs& a, const SelectTile& t, const Weights& w) {
    const i64 group = a.hq / a.kv.hkv;
    bool plain = true;
    for (i64 c = 0; c < t.columns; ++c) {
        const bool coarse = t.coarse.visible > 0 && seen_keys(a, t, t.coarse, c / group) > 0;
        const float* tops = (coarse ? w.coarse_tops : w.tops) + c;
        const float* sums = (coarse ? w.coarse_sums : w.sums) + c;
        const i64 units = (seen_keys(a, t, coarse ? t.coarse : t.fine, c / group) + kUnit - 1) / kUnit;
        float top = units > 0 ? tops[0] : 0.0F;
        for (i64 u = 1; u < units; ++u) top = tops[u * t.columns] > top ? tops[u * t.columns] : top;
        float total = 0.0F;
        for (i64 u = 0; u < units; ++u) {
            const float sum = sums[u * t.columns];
            const float below = tops[u * t.columns] - top;
            total += below == 0.0F ? sum : first_lane(shifted(set1(sum), below));
        }
        w.top[c] = top;
        w.inverse[c] = 1.0F / total;
        plain = plain && top == 0.0F;
        for (i64 u = 0; u < t.fine.units(); ++u) plain = plain && w.tops[u * t.columns + c] == 0.0F;
    }
    return plain;
}

// Scores of a row's keys: weights summed over the group's heads, always in the same order.
template <bool PLAIN>
static void score_keys(const SelectTile& t, const Weights& w, i64 r, i64 group, i64 visible) {
    for (i64 first = 0; first < visible; first += kChunk) {
        V sum[kChunk / W];
        MC_UNROLL
        for (i64 i = 0; i < kChunk / W; ++i) sum[i] = zero();
        const float* from = w.powers + (first * t.columns + r * group * kChunk);
        for (i64 c = r * group; c < (r + 1) * group; ++c, from += kChunk) {
            const V inverse = set1(w.inverse[c]);
            const float below = PLAIN ? 0.0F : w.tops[first / kUnit * t.columns + c] - w.top[c];
            MC_UNROLL
            for (i64 i = 0; i < kChunk / W; ++i) {
                const V power = load(from + i * W);
                sum[i] = fma(PLAIN ? power : shifted(power, below), inverse, sum[i]);
            }
        }
        MC_UNROLL
        for (i64 i = 0; i < kChunk / W; ++i) store(w.scores + first + i * W, sum[i]);
    }
}

// Chooses for every row of a tile whose units are measured.
static void finish_tile(const SelectArgs& a, const SelectTile& t, const Weights& w) {
    const i64 group = a.hq / a.kv.hkv;
    const i64 budget = a.topk + a.local_blocks;
    const bool plain = t.blocks > 0 && join_units(a, t, w);
    for (i64 r = 0; r < t.rows; ++r) {
        const i64 position = a.step.angles[t.row + r];
        const i64 own = position / a.kv.page_size;
        i32* blocks = a.blocks + ((t.row + r) * a.kv.hkv + t.head) * budget;
        i64 count = -1;
        if (position + 1 < a.dense_len) {
            for (i64 i = 0; i < budget; ++i) blocks[i] = -1;
        } else {
            if (own + 1 > budget) {
                const i64 visible = seen_keys(a, t, t.fine, r);
                plain ? score_keys<true>(t, w, r, group, visible) : score_keys<false>(t, w, r, group, visible);
                score_blocks(a, w.scores, visible, own + 1, w.found);
            }
            count = choose_blocks(a, w.found, own, blocks);
        }
        a.counts[(t.row + r) * a.kv.hkv + t.head] = static_cast<i32>(count);
    }
}

#include "select/plan.hpp"

static void select(Pool& pool, const SelectArgs& args) {
    if (kHasVnni && kHasBf16Dot && args.kv.compressed.scales) {
        select_as<kHasVnni && kHasBf16Dot>(pool, args);
    } else {
        select_as<false>(pool, args);
    }
}
