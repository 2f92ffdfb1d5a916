// Choosing blocks while decoding: one row per sequence. Included by select.hpp.
//
// The heads of one row are too few for a tile to keep threads and lanes busy. Here lanes are kernels, and
// threads share the kernels of one (row, kv head). Every sum has the order that tiles use: parts of
// kChunk kernels, lane by lane and then as a tree, parts one after another. So a row chooses the
// same blocks here, in a tile, and with any number of threads.

static constexpr i64 kUnit = 8 * kChunk;  // kernels that a thread takes at once

// One row and kv head, and its memory.
struct RowTask {
    SelectTile t;
    i64 blocks;    // 0: nothing to score
    i64 chunks;    // of the kernels that the denominator is taken over
    bool coarse;   // those are the coarse ones
    i64 width;     // visible, rounded up to kChunk
    float* scores;   // (group, width), unless coarse
    float* tops;     // (chunks, columns), columns rounded up
    float* sums;     // (chunks, columns)
    float* top;      // (columns)
    float* inverse;  // (columns)
    float* found;    // (blocks)
    u64* keys;       // (blocks)
};

struct RowScratch {
    float* rows;      // queries (group, d), floats or codes
    float* scales;    // (group) of codes
    float* gathered;  // (d, kChunk)
    float* loaded;    // (kChunk, d), where kernels are not float32
    float* scores;    // (group, kChunk)
    float* kernels;   // (kChunk) scores of kernels
};

// Sequence `j`'s task for a kv head. Memory starts at `base`; returns the floats that it takes.
static i64 row_task(const SelectArgs& a, i64 j, i64 head, float* base, RowTask* task) {
    const i64 group = a.hq / a.kv.hkv;
    const i64 column = round_up(group, W);
    RowTask& r = *task;
    r = {};
    r.t.table = a.step.page_table + j * a.step.max_pages;
    r.t.row = a.step.cu_rows[j];
    r.t.rows = 1;
    r.t.head = head;
    r.t.columns = group;
    const i64 position = a.step.positions[r.t.row];
    const i64 own = position / a.kv.page_size;
    if (position + 1 < a.dense_len || own + 1 <= a.topk + a.local_blocks) return 0;
    r.t.visible = num_visible(a.kernel, position);
    r.t.coarse = a.lse_approx ? num_visible(coarse_shape(a.kernel), position) : 0;
    r.coarse = r.t.coarse > 0;
    r.chunks = ((r.coarse ? r.t.coarse : r.t.visible) + kChunk - 1) / kChunk;
    r.blocks = own + 1;
    r.width = round_up(r.t.visible, kChunk);
    r.scores = base;
    r.tops = r.scores + (r.coarse ? 0 : group * r.width);
    r.sums = r.tops + r.chunks * column;
    r.top = r.sums + r.chunks * column;
    r.inverse = r.top + column;
    r.keys = reinterpret_cast<u64*>(r.inverse + column);
    r.found = r.inverse + column + 2 * r.blocks;
    return round_up(r.found + r.blocks - base, W);
}

// Calls body(task, unit) for units [begin, end), counted over all tasks; `units` tells how many one has.
template <class Units, class Body>
static void each_unit(const SelectArgs& a, float* base, i64 begin, i64 end, Units units, Body body) {
    i64 first = 0;
    for (i64 i = 0; i < a.step.sequences * a.kv.hkv && first < end; ++i) {
        const i64 j = i / a.kv.hkv;
        if (a.step.cu_rows[j + 1] == a.step.cu_rows[j]) continue;
        RowTask task;
        base += row_task(a, j, i % a.kv.hkv, base, &task);
        const i64 count = units(task);
        for (i64 u = begin > first ? begin - first : 0; u < count && first + u < end; ++u) body(task, u);
        first += count;
    }
}

#if defined(MC_ISA_AVX512) || defined(MC_ISA_AVX512_BF16)
// to (16, kChunk) = transpose of 16 rows of 16 floats, `step` apart.
MC_INLINE void transpose16(const float* const* from, i64 at, float* to) {
    __m512 a[16];
    __m512 b[16];
    MC_UNROLL
    for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_ps(from[i] + at);
    MC_UNROLL
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
    }
    MC_UNROLL
    for (int i = 0; i < 16; i += 4) {
        a[i] = _mm512_shuffle_ps(b[i], b[i + 2], 0x44);
        a[i + 1] = _mm512_shuffle_ps(b[i], b[i + 2], 0xee);
        a[i + 2] = _mm512_shuffle_ps(b[i + 1], b[i + 3], 0x44);
        a[i + 3] = _mm512_shuffle_ps(b[i + 1], b[i + 3], 0xee);
    }
    MC_UNROLL
    for (int i = 0; i < 4; ++i) {
        const __m512 p = _mm512_shuffle_f32x4(a[i], a[i + 4], 0x88);
        const __m512 q = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0x88);
        const __m512 r = _mm512_shuffle_f32x4(a[i], a[i + 4], 0xdd);
        const __m512 s = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0xdd);
        _mm512_storeu_ps(to + i * kChunk, _mm512_shuffle_f32x4(p, q, 0x88));
        _mm512_storeu_ps(to + (i + 4) * kChunk, _mm512_shuffle_f32x4(r, s, 0x88));
        _mm512_storeu_ps(to + (i + 8) * kChunk, _mm512_shuffle_f32x4(p, q, 0xdd));
        _mm512_storeu_ps(to + (i + 12) * kChunk, _mm512_shuffle_f32x4(r, s, 0xdd));
    }
}
#endif

// to (d, kChunk): up to kChunk kernels side by side.
static void gather_across(const float* const* from, i64 count, i64 d, float* to) {
    i64 j = 0;
#if defined(MC_ISA_AVX512) || defined(MC_ISA_AVX512_BF16)
    for (; d % 16 == 0 && j + 16 <= count; j += 16) {
        for (i64 i = 0; i < d; i += 16) transpose16(from + j, i, to + i * kChunk + j);
    }
#endif
    for (; j < count; ++j) {
        for (i64 i = 0; i < d; ++i) to[i * kChunk + j] = from[j][i];
    }
}

// scores (group, count), `width` apart, of kernels [first, first + count); all are visible.
template <bool DOT>
static void score_row(const SelectArgs& a, const RowTask& r, const RowScratch& s, bool coarse, i64 first,
                      i64 count, float* scores, i64 width) {
    const i64 d = a.kv.d;
    const KernelShape k = coarse ? coarse_shape(a.kernel) : a.kernel;
    const Compressed& store = coarse ? a.kv.coarse : a.kv.kernels;
    const i64 visible = coarse ? r.t.coarse : r.t.visible;
    const float* from[kChunk];
    float scales[kChunk];
    visit_kernels(a, r.t, k, store, visible, first, count, [&](i64 j, i64 at) {
        from[j] = s.loaded + j * d;
        if (DOT) {
            // Pairs of codes move as floats do; nothing is computed with them as such.
            from[j] = reinterpret_cast<const float*>(static_cast<const i16*>(store.data) + at * d);
            scales[j] = store.scales[at];
        } else if (store.scales) {
            load_kernel(store, at, d, s.loaded + j * d);
        } else {
            from[j] = static_cast<const float*>(store.data) + at * d;
        }
    });
    gather_across(from, count, DOT ? d / 2 : d, s.gathered);
    if (DOT) {
        const i16* codes = reinterpret_cast<const i16*>(s.rows);
        const i32* pairs = reinterpret_cast<const i32*>(s.gathered);
        for (i64 h = 0; h < r.t.columns; h += 8) {
            const i64 m = r.t.columns - h < 8 ? r.t.columns - h : 8;
            const i16* queries[8];
            for (i64 i = 0; i < m; ++i) queries[i] = codes + (h + i) * d;
            score_dot(queries, s.scales + h, m, d, pairs, kChunk, scales, count, scores + h * width, width);
        }
    } else {
        tile(r.t.columns, count, d, s.rows, d, s.gathered, kChunk, scores, width, false);
    }
}

template <bool DOT>
static void load_row_queries(const SelectArgs& a, const RowTask& r, const RowScratch& s) {
    const i64 d = a.kv.d;
    for (i64 h = 0; h < r.t.columns; ++h) {
        float query[kMaxHeadDim];
        load_query(a, r.t.row, r.t.head * r.t.columns + h, query);
        if (DOT) {
            store_dot_row(query, d, reinterpret_cast<i16*>(s.rows) + h * d, s.scales + h);
        } else {
            memcpy(s.rows + h * d, query, static_cast<size_t>(d) * sizeof(float));
        }
    }
}

// Pass one for a unit: scores, and the maximum and sum of exponentials of each chunk and head.
template <bool DOT>
static void measure_unit(const SelectArgs& a, const RowTask& r, const RowScratch& s, i64 unit) {
    const i64 column = round_up(r.t.columns, W);
    const i64 visible = r.coarse ? r.t.coarse : r.t.visible;
    load_row_queries<DOT>(a, r, s);
    for (i64 c = unit * (kUnit / kChunk); c < r.chunks && c < (unit + 1) * (kUnit / kChunk); ++c) {
        const i64 first = c * kChunk;
        const i64 count = visible - first < kChunk ? visible - first : kChunk;
        float* scores = r.coarse ? s.scores : r.scores + first;
        const i64 width = r.coarse ? kChunk : r.width;
        score_row<DOT>(a, r, s, r.coarse, first, count, scores, width);
        for (i64 h = 0; h < r.t.columns; ++h) {
            float* own = scores + h * width;
            for (i64 j = count; j < round_up(count, W); ++j) own[j] = -INFINITY;
            V most = set1(kLeast);
            for (i64 j = 0; j < count; j += W) most = max(load(own + j), most);
            const float top = hmax(most);
            V part = zero();
            for (i64 j = 0; j < count; j += W) part = add(part, power<DOT>(sub(load(own + j), set1(top))));
            r.tops[c * column + h] = top;
            r.sums[c * column + h] = tree_sum(part);
        }
    }
}

// Maximum and inverse sum of every head, chunk after chunk.
template <bool DOT>
static void join_chunks(const RowTask& r) {
    for (i64 h = 0; h < r.t.columns; h += W) {
        const int n = r.t.columns - h < W ? static_cast<int>(r.t.columns - h) : W;
        V top = set1(kLeast);
        V sum = zero();
        for (i64 c = 0; c < r.chunks; ++c) {
            const i64 at = c * round_up(r.t.columns, W) + h;
            fold_chunk<DOT>(load_some(r.tops + at, n), load_some(r.sums + at, n), &top, &sum);
        }
        store_some(r.top + h, top, n);
        store_some(r.inverse + h, sum, n);
    }
    for (i64 h = 0; h < r.t.columns; ++h) r.inverse[h] = 1.0F / r.inverse[h];
}

// Sums over heads of the weights of kernels [first, first + count).
template <bool DOT>
static void sum_row_heads(const RowTask& r, const float* scores, i64 width, i64 count, float* sums) {
    for (i64 j = 0; j < count; j += W) {
        const int n = count - j < W ? static_cast<int>(count - j) : W;
        V part[W];
        for (int i = 0; i < W; ++i) part[i] = zero();
        for (i64 h = 0; h < r.t.columns; ++h) {
            const V weight = power<DOT>(sub(load_some(scores + h * width + j, n), set1(r.top[h])));
            part[h % W] = add(part[h % W], mul(weight, set1(r.inverse[h])));
        }
        store_some(sums + j, tree_of(part), n);
    }
}

// How many blocks a unit of pass two has, and how many kernels overlap one.
MC_INLINE i64 unit_blocks(const SelectArgs& a) {
    const i64 blocks = kUnit * a.kernel.stride / a.kv.page_size;
    return blocks > 0 ? blocks : 1;
}

// Pass two for the blocks [unit * unit_blocks, ...): scores become weights, weights block scores.
template <bool DOT>
static void score_unit(const SelectArgs& a, const RowTask& r, const RowScratch& s, i64 unit) {
    const i64 begin = unit * unit_blocks(a);
    const i64 end = begin + unit_blocks(a) < r.blocks ? begin + unit_blocks(a) : r.blocks;
    const i64 per_block = a.kv.page_size / a.kernel.stride;
    const i64 before = a.kernel.size / a.kernel.stride - 1;
    for (i64 b = begin; b < end; ++b) r.found[b] = -1.0F;
    if (r.coarse) load_row_queries<DOT>(a, r, s);
    i64 low = begin * per_block - before;
    low = low < 0 ? 0 : low;
    const i64 high = end * per_block < r.t.visible ? end * per_block : r.t.visible;
    for (i64 first = low; first < high; first += kChunk) {
        const i64 count = high - first < kChunk ? high - first : kChunk;
        float* scores = r.coarse ? s.scores : r.scores + first;
        const i64 width = r.coarse ? kChunk : r.width;
        if (r.coarse) score_row<DOT>(a, r, s, false, first, count, scores, width);
        sum_row_heads<DOT>(r, scores, width, count, s.kernels);
        const i64 stop = first + count;
        for (i64 b = first / per_block < begin ? begin : first / per_block; b < end; ++b) {
            i64 j = b * per_block - before < first ? first : b * per_block - before;
            if (j >= stop) break;
            for (; j < stop && j < (b + 1) * per_block; ++j) {
                if (s.kernels[j - first] > r.found[b]) r.found[b] = s.kernels[j - first];
            }
        }
    }
}

static void choose_row(const SelectArgs& a, const RowTask& r) {
    const i64 position = a.step.positions[r.t.row];
    const i64 at = r.t.row * a.kv.hkv + r.t.head;
    const i64 budget = a.topk + a.local_blocks;
    i64 count = -1;
    if (position + 1 < a.dense_len) {
        for (i64 i = 0; i < budget; ++i) a.blocks[at * budget + i] = -1;
    } else {
        count = choose_blocks(a, r.found, 1, position / a.kv.page_size, r.keys, a.blocks + at * budget);
    }
    a.counts[at] = static_cast<i32>(count);
}

// Whether the step is one of decoding whose scores may be kept; *floats: what to keep them in.
static bool is_decoding(const SelectArgs& a, i64* floats) {
    *floats = 0;
    for (i64 j = 0; j < a.step.sequences; ++j) {
        const i64 rows = a.step.cu_rows[j + 1] - a.step.cu_rows[j];
        if (rows > 1) return false;
        RowTask task;
        if (rows == 1) *floats += row_task(a, j, 0, nullptr, &task) * a.kv.hkv;
    }
    return *floats <= kStoredScores;
}

template <bool DOT>
static void select_rows(Pool& pool, const SelectArgs& a, i64 floats) {
    const i64 group = a.hq / a.kv.hkv;
    const i64 queries = round_up(group * a.kv.d, W);
    const i64 scratch = queries + round_up(group, W) + 2 * a.kv.d * kChunk + group * kChunk + kChunk;
    pool.reserve(scratch * static_cast<i64>(sizeof(float)));
    pool.reserve_shared(floats * static_cast<i64>(sizeof(float)));
    float* base = static_cast<float*>(pool.shared());
    const auto run = [&](auto units, auto work) {
        i64 total = 0;
        const auto count = [&](const RowTask& r) {
            total += units(r);
            return 0;
        };
        each_unit(a, base, 0, INT64_MAX, count, [](const RowTask&, i64) {});
        auto body = [&](i64 begin, i64 end, int worker) {
            RowScratch s = {};
            s.rows = static_cast<float*>(pool.scratch(worker));
            s.scales = s.rows + queries;
            s.gathered = s.scales + round_up(group, W);
            s.loaded = s.gathered + a.kv.d * kChunk;
            s.scores = s.loaded + a.kv.d * kChunk;
            s.kernels = s.scores + group * kChunk;
            each_unit(a, base, begin, end, units, [&](const RowTask& r, i64 unit) { work(r, s, unit); });
        };
        parallel(pool, total, 1, body);
    };
    if (floats > 0) {
        run([](const RowTask& r) { return (r.chunks + kUnit / kChunk - 1) / (kUnit / kChunk); },
            [&](const RowTask& r, const RowScratch& s, i64 unit) { measure_unit<DOT>(a, r, s, unit); });
        run([](const RowTask& r) { return static_cast<i64>(r.chunks > 0); },
            [](const RowTask& r, const RowScratch&, i64) { join_chunks<DOT>(r); });
        run([&](const RowTask& r) { return (r.blocks + unit_blocks(a) - 1) / unit_blocks(a); },
            [&](const RowTask& r, const RowScratch& s, i64 unit) { score_unit<DOT>(a, r, s, unit); });
    }
    run([](const RowTask&) { return static_cast<i64>(1); },
        [&](const RowTask& r, const RowScratch&, i64) { choose_row(a, r); });
}
