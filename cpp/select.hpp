// Choosing blocks (InfLLM v2, steps 1 to 3). Included by each instruction set's unit.
//
// A tile is up to W query rows of one sequence with the heads of one kv head. Its scores are laid out
// (kernel, head, row): every step is then lane by lane, whatever the group size. The order of all
// sums depends on the kernel and head alone, so a row chooses the same blocks in any tile.

static constexpr i64 kChunk = 64;                 // kernels scored at once
static constexpr i64 kMaxColumns = 256;           // (head, row) pairs of a tile
static constexpr float kLeast = -3e38F;           // below any score, yet not infinite: no NaN from it
static constexpr i64 kStoredScores = 2 << 20;     // above that many floats, pass two scores again

struct SelectTile {
    const i32* table;
    i64 row;       // first row of the tile
    i64 rows;      // its rows
    i64 head;      // kv head
    i64 columns;   // group * rows
    i64 visible;   // kernels that the last row sees
    i64 coarse;    // coarse kernels that the last row sees
};

struct SelectScratch {
    float* queries;  // see load_queries
    float* scales;   // (columns)
    float* gathered; // (kChunk, d)
    float* scores;   // (visible or kChunk, columns)
    float* top;      // (columns) running maximum, then
    float* inverse;  // (columns) running sum, then its inverse
    float* blocks;   // (blocks, W) block scores
    u64* keys;       // (blocks)
};

// Asks for compressed key number `at`, which is read soon.
MC_INLINE void prefetch_kernel(const Compressed& c, i64 at, i64 d) {
#if defined(__GNUC__)
    const i64 bytes = d * (c.scales ? 2 : 4);
    const char* from = static_cast<const char*>(c.data) + at * bytes;
    for (i64 i = 0; i < bytes; i += 64) __builtin_prefetch(from + i);
    if (c.scales) __builtin_prefetch(c.scales + at);
#else
    (void)c;
    (void)at;
    (void)d;
#endif
}

MC_INLINE i64 round_up(i64 n, i64 multiple) { return (n + multiple - 1) / multiple * multiple; }

#include "select_dot.hpp"

// One query (d), scaled by 1/sqrt(d), rotated back with use_nope.
static void load_query(const SelectArgs& a, i64 row, i64 head, float* to) {
    const i64 d = a.kv.d;
    const i64 half = d / 2;
    const float scale = 1.0F / sqrtf(static_cast<float>(d));
    const float* q = a.q + (row * a.hq + head) * d;
    if (!a.use_nope) {
        for (i64 i = 0; i < d; ++i) to[i] = q[i] * scale;
        return;
    }
    const i64 position = a.step.positions[row];
    for (i64 i = 0; i < half; ++i) {
        const float c = a.rotary.cos[position * half + i];
        const float s = a.rotary.sin[position * half + i];
        const float factor = scale / (c * c + s * s);
        to[i] = (q[i] * c + q[i + half] * s) * factor;
        to[i + half] = (q[i + half] * c - q[i] * s) * factor;
    }
}

// The queries of the tile as its columns: (d, columns), or pairs (d / 2, columns) and their scales.
template <bool DOT>
static void load_queries(const SelectArgs& a, const SelectTile& t, const SelectScratch& s) {
    const i64 d = a.kv.d;
    const i64 group = a.hq / a.kv.hkv;
    float query[kMaxHeadDim];
    for (i64 c = 0; c < t.columns; ++c) {
        load_query(a, t.row + c % t.rows, t.head * group + c / t.rows, query);
        if (DOT) {
            store_dot_query(query, d, reinterpret_cast<i32*>(s.queries) + c, t.columns, s.scales + c);
        } else {
            for (i64 i = 0; i < d; ++i) s.queries[i * t.columns + c] = query[i];
        }
    }
}

// Floats of compressed key number `at` (pages, heads and slots counted together).
MC_INLINE void load_kernel(const Compressed& c, i64 at, i64 d, float* to) {
    if (!c.scales) {
        memcpy(to, static_cast<const float*>(c.data) + at * d, static_cast<size_t>(d) * sizeof(float));
        return;
    }
    const int16_t* codes = static_cast<const int16_t*>(c.data) + at * d;
    for (i64 i = 0; i < d; ++i) to[i] = static_cast<float>(codes[i]) * c.scales[at];
}

// Calls visit(j, number) for kernels first + j, j < count, of a sequence that sees `visible`; numbers count
// pages, heads and slots together. Asks for the kernels of the next chunk.
template <class Visit>
MC_INLINE void visit_kernels(const SelectArgs& a, const SelectTile& t, KernelShape k, const Compressed& store,
                             i64 visible, i64 first, i64 count, Visit visit) {
    const i64 ahead = visible - first < 2 * kChunk ? visible - first : 2 * kChunk;
    const i64 end = first * k.stride + k.size - 1;  // last token of the kernel
    const i64 skip = k.stride > a.kv.page_size ? k.stride / a.kv.page_size : 1;
    i64 index = end / a.kv.page_size;
    i64 slot = end % a.kv.page_size / k.stride;
    for (i64 j = 0; j < ahead; ++j) {
        const i64 at = (t.table[index] * a.kv.hkv + t.head) * store.slots + slot;
        if (j < count) visit(j, at);
        if (j >= kChunk) prefetch_kernel(store, at, a.kv.d);
        if (++slot < store.slots) continue;
        slot = 0;
        index += skip;
    }
}

// scores (count, columns) of kernels [first, first + count); minus infinity where a row sees none.
template <bool DOT>
static void score_chunk(const SelectArgs& a, const SelectTile& t, const SelectScratch& s, KernelShape k,
                        const Compressed& store, i64 first, i64 count, float* scores) {
    const i64 d = a.kv.d;
    const i64 visible = num_visible(k, a.step.positions[t.row + t.rows - 1]);
    if (DOT) {
        const i16* kernels[kChunk];
        float scales[kChunk];
        visit_kernels(a, t, k, store, visible, first, count, [&](i64 j, i64 at) {
            kernels[j] = static_cast<const i16*>(store.data) + at * d;
            scales[j] = store.scales[at];
        });
        const i32* queries = reinterpret_cast<const i32*>(s.queries);
        score_dot(kernels, scales, count, d, queries, t.columns, s.scales, t.columns, scores, t.columns);
    } else {
        visit_kernels(a, t, k, store, visible, first, count,
                      [&](i64 j, i64 at) { load_kernel(store, at, d, s.gathered + j * d); });
        tile(count, t.columns, d, s.gathered, d, s.queries, t.columns, scores, t.columns, false);
    }
    for (i64 r = 0; r < t.rows; ++r) {
        i64 j = num_visible(k, a.step.positions[t.row + r]) - first;
        for (j = j < 0 ? 0 : j; j < count; ++j) {
            for (i64 c = r; c < t.columns; c += t.rows) scores[j * t.columns + c] = -INFINITY;
        }
    }
}

// The sum of lanes, and of vectors lane by lane: always the same tree.
MC_INLINE float tree_sum(V a) {
    float lane[W];
    store(lane, a);
    for (int half = W / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
    }
    return lane[0];
}

MC_INLINE V tree_of(V* part) {
    for (int half = W / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) part[i] = add(part[i], part[i + half]);
    }
    return part[0];
}

// Folds a chunk's maximum and sum of exponentials (relative to it) into the running ones.
template <bool DOT>
MC_INLINE void fold_chunk(V chunk_top, V chunk_sum, V* top, V* sum) {
    const V most = max(chunk_top, *top);
    *sum = fma(*sum, power<DOT>(sub(*top, most)), mul(chunk_sum, power<DOT>(sub(chunk_top, most))));
    *top = most;
}

// Folds scores (count, columns) into the running maximum and sum of exponentials of each column.
template <bool DOT>
static void fold(const SelectTile& t, const float* scores, i64 count, float* top, float* sum) {
    for (i64 c = 0; c < t.columns; c += W) {
        const int n = t.columns - c < W ? static_cast<int>(t.columns - c) : W;
        V most = set1(kLeast);
        for (i64 j = 0; j < count; ++j) most = max(load_some(scores + j * t.columns + c, n), most);
        V part[W];
        for (int i = 0; i < W; ++i) part[i] = zero();
        for (i64 j = 0; j < count; ++j) {
            part[j % W] = add(part[j % W], power<DOT>(sub(load_some(scores + j * t.columns + c, n), most)));
        }
        V before = load_some(top + c, n);
        V total = load_some(sum + c, n);
        fold_chunk<DOT>(most, tree_of(part), &before, &total);
        store_some(top + c, before, n);
        store_some(sum + c, total, n);
    }
}

// Pass one: maximum and inverse sum of every column's softmax over kernels of shape k.
template <bool DOT>
static void denominator(const SelectArgs& a, const SelectTile& t, const SelectScratch& s, KernelShape k,
                        const Compressed& store, i64 visible, bool stored, float* top, float* sum) {
    for (i64 c = 0; c < t.columns; ++c) {
        top[c] = kLeast;
        sum[c] = 0.0F;
    }
    for (i64 first = 0; first < visible; first += kChunk) {
        const i64 count = visible - first < kChunk ? visible - first : kChunk;
        float* scores = stored ? s.scores + first * t.columns : s.scores;
        score_chunk<DOT>(a, t, s, k, store, first, count, scores);
        fold<DOT>(t, scores, count, top, sum);
    }
}

// Sum over the group's heads of one kernel's weights, (head, row) to (row): always the same tree.
MC_INLINE V sum_heads(const SelectTile& t, const float* weights, i64 group) {
    V part[W];
    const int rows = static_cast<int>(t.rows);
    for (int i = 0; i < W; ++i) part[i] = zero();
    for (i64 h = 0; h < group; ++h) {
        part[h % W] = add(part[h % W], load_some(weights + h * t.rows, rows));
    }
    return tree_of(part);
}

// The same for a tile of one row: heads are neighbours.
MC_INLINE float sum_heads_of_one(const float* weights, i64 group) {
    V part = zero();
    for (i64 h = 0; h < group; h += W) {
        part = add(part, load_some(weights + h, group - h < W ? static_cast<int>(group - h) : W));
    }
    return tree_sum(part);
}

// Pass two for kernels [first, first + count): scores become weights, weights block scores.
template <bool DOT>
static void score_blocks(const SelectArgs& a, const SelectTile& t, const SelectScratch& s, float* scores,
                         i64 first, i64 count, i64 num_blocks) {
    const i64 group = a.hq / a.kv.hkv;
    const i64 certain = num_visible(a.kernel, a.step.positions[t.row]);
    for (i64 j = 0; j < count; ++j) {
        float* row = scores + j * t.columns;
        for (i64 c = 0; c < t.columns; c += W) {
            const int n = t.columns - c < W ? static_cast<int>(t.columns - c) : W;
            const V weight = power<DOT>(sub(load_some(row + c, n), load_some(s.top + c, n)));
            store_some(row + c, mul(weight, load_some(s.inverse + c, n)), n);
        }
        float sums[W];
        store(sums, t.rows == 1 ? set1(sum_heads_of_one(row, group)) : sum_heads(t, row, group));
        if (first + j >= certain) {
            for (i64 r = 0; r < t.rows; ++r) {
                if (first + j >= num_visible(a.kernel, a.step.positions[t.row + r])) sums[r] = -1.0F;
            }
        }
        const i64 start = (first + j) * a.kernel.stride;
        i64 last = (start + a.kernel.size - 1) / a.kv.page_size;
        if (last >= num_blocks) last = num_blocks - 1;
        for (i64 b = start / a.kv.page_size; b <= last; ++b) {
            store(s.blocks + b * W, max(load(sums), load(s.blocks + b * W)));
        }
    }
}

// Steps 1 and 2 for a tile: block scores (blocks, W), -1 where a block overlaps no visible kernel.
template <bool DOT>
static void block_scores(const SelectArgs& a, const SelectTile& t, const SelectScratch& s, i64 num_blocks) {
    const KernelShape k = a.kernel;
    const bool stored = t.visible * t.columns <= kStoredScores;
    const bool fine_rows = !a.lse_approx || num_visible(coarse_shape(k), a.step.positions[t.row]) == 0;
    const bool have_scores = fine_rows && stored;
    for (i64 i = 0; i < num_blocks * W; ++i) s.blocks[i] = -1.0F;
    load_queries<DOT>(a, t, s);
    if (fine_rows) denominator<DOT>(a, t, s, k, a.kv.kernels, t.visible, stored, s.top, s.inverse);
    if (a.lse_approx && t.coarse > 0) {
        // Coarse scores go behind the fine ones, which pass two still needs.
        SelectScratch other = s;
        if (have_scores) other.scores += t.visible * t.columns;
        float* top = s.inverse + round_up(t.columns, W);
        float* sum = top + round_up(t.columns, W);
        denominator<DOT>(a, t, other, coarse_shape(k), a.kv.coarse, t.coarse, false, top, sum);
        for (i64 c = 0; c < t.columns; ++c) {
            if (num_visible(coarse_shape(k), a.step.positions[t.row + c % t.rows]) > 0) {
                s.top[c] = top[c];
                s.inverse[c] = sum[c];
            }
        }
    }
    for (i64 c = 0; c < t.columns; ++c) s.inverse[c] = 1.0F / s.inverse[c];
    for (i64 first = 0; first < t.visible; first += kChunk) {
        const i64 count = t.visible - first < kChunk ? t.visible - first : kChunk;
        float* scores = have_scores ? s.scores + first * t.columns : s.scores;
        if (!have_scores) score_chunk<DOT>(a, t, s, k, a.kv.kernels, first, count, scores);
        score_blocks<DOT>(a, t, s, scores, first, count, num_blocks);
    }
}

#include "select_row.hpp"

template <bool DOT>
static void select_tile(const SelectArgs& a, const SelectTile& t, const SelectScratch& s) {
    const i64 budget = a.topk + a.local_blocks;
    const i64 last_own = a.step.positions[t.row + t.rows - 1] / a.kv.page_size;
    const bool sparse = !(a.step.positions[t.row + t.rows - 1] + i64(1) < a.dense_len);
    if (sparse && last_own + 1 > budget) block_scores<DOT>(a, t, s, last_own + 1);
    for (i64 r = 0; r < t.rows; ++r) {
        const i64 position = a.step.positions[t.row + r];
        i32* blocks = a.blocks + ((t.row + r) * a.kv.hkv + t.head) * budget;
        i64 count = -1;
        if (position + 1 < a.dense_len) {
            for (i64 i = 0; i < budget; ++i) blocks[i] = -1;
        } else {
            count = choose_blocks(a, s.blocks + r, W, position / a.kv.page_size, s.keys, blocks);
        }
        a.counts[(t.row + r) * a.kv.hkv + t.head] = static_cast<i32>(count);
    }
}

// Rows of a tile of a sequence with `rows` new rows.
MC_INLINE i64 select_tile_rows(i64 rows, i64 group) {
    i64 size = W < rows ? W : rows;
    if (size * group > kMaxColumns) size = kMaxColumns / group;
    return size < 1 ? 1 : size;
}

// Tile number `item` of the step, items counted over sequences, kv heads and rows.
static SelectTile find_select_tile(const SelectArgs& a, i64 item) {
    const i64 group = a.hq / a.kv.hkv;
    for (i64 j = 0; j < a.step.sequences; ++j) {
        const i64 begin = a.step.cu_rows[j];
        const i64 rows = a.step.cu_rows[j + 1] - begin;
        if (rows == 0) continue;
        const i64 size = select_tile_rows(rows, group);
        const i64 tiles = (rows + size - 1) / size * a.kv.hkv;
        if (item >= tiles) {
            item -= tiles;
            continue;
        }
        SelectTile t = {};
        t.table = a.step.page_table + j * a.step.max_pages;
        t.head = item % a.kv.hkv;
        t.row = begin + item / a.kv.hkv * size;
        t.rows = begin + rows - t.row < size ? begin + rows - t.row : size;
        t.columns = t.rows * group;
        const i64 position = a.step.positions[t.row + t.rows - 1];
        t.visible = num_visible(a.kernel, position);
        t.coarse = a.lse_approx ? num_visible(coarse_shape(a.kernel), position) : 0;
        return t;
    }
    return {};
}

// Floats of each part of the scratch, for the largest tile of the step.
struct SelectSizes {
    i64 items, queries, gathered, scores, column, blocks, keys;
};

static SelectSizes select_sizes(const SelectArgs& a) {
    const i64 group = a.hq / a.kv.hkv;
    SelectSizes z = {};
    i64 columns = 0;
    i64 blocks = 0;
    for (i64 j = 0; j < a.step.sequences; ++j) {
        const i64 rows = a.step.cu_rows[j + 1] - a.step.cu_rows[j];
        if (rows == 0) continue;
        const i64 size = select_tile_rows(rows, group);
        const i64 position = a.step.positions[a.step.cu_rows[j + 1] - 1];
        z.items += (rows + size - 1) / size * a.kv.hkv;
        columns = size * group > columns ? size * group : columns;
        blocks = position / a.kv.page_size + 1 > blocks ? position / a.kv.page_size + 1 : blocks;
        const i64 all = num_visible(a.kernel, position) * size * group;
        if (all > z.scores) z.scores = all < kStoredScores ? all : kStoredScores;
    }
    z.column = round_up(columns, W);
    z.queries = round_up(a.kv.d * columns, W);
    z.gathered = round_up(kChunk * a.kv.d, W);
    z.scores = round_up(z.scores + kChunk * columns, W);
    z.blocks = blocks * W;
    z.keys = round_up(2 * blocks, W);
    return z;
}

template <bool DOT>
static void select_as(Pool& pool, const SelectArgs& args) {
    i64 kept = 0;
    if (is_decoding(args, &kept)) {
        select_rows<DOT>(pool, args, kept);
        return;
    }
    const SelectSizes z = select_sizes(args);
    const i64 floats = z.queries + z.gathered + z.scores + 5 * z.column + z.blocks + z.keys;
    pool.reserve(floats * static_cast<i64>(sizeof(float)));
    auto body = [&](i64 begin, i64 end, int worker) {
        SelectScratch s = {};
        s.queries = static_cast<float*>(pool.scratch(worker));
        s.gathered = s.queries + z.queries;
        s.scores = s.gathered + z.gathered;
        s.blocks = s.scores + z.scores;
        s.keys = reinterpret_cast<u64*>(s.blocks + z.blocks);
        s.top = s.blocks + z.blocks + z.keys;
        s.scales = s.top + z.column;
        s.inverse = s.scales + z.column;  // two more columns behind it, for the coarse denominator
        for (i64 item = begin; item < end; ++item) select_tile<DOT>(args, find_select_tile(args, item), s);
    };
    parallel(pool, z.items, 1, body);
}

static void select(Pool& pool, const SelectArgs& args) {
    if (kHasVnni && kHasBf16Dot && args.kv.kernels.scales) {
        select_as<kHasVnni && kHasBf16Dot>(pool, args);
    } else {
        select_as<false>(pool, args);
    }
}
