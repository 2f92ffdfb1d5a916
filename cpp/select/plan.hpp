// How the choice of blocks is cut into tiles and units, and its memory. Included by select/select.hpp.
//
// Steps of many rows: keys are brought side by side once, then each thread takes tiles of rows, and all
// units of a tile. Decoding: threads share the units of the few tiles; who measures a tile's last unit
// finishes it.

static constexpr i64 kSharedFloats = 4 << 20;  // of the tiles of a step of decoding

struct SequencePlan {
    i64 rows, size, tiles;  // new rows, rows of a tile, tiles of all kv heads
    SelectTile whole;       // of all rows and kv head 0
};

// Compressed keys that the rows of a tile see, and the blocks before them.
static void look_back(const SelectArgs& a, SelectTile* t) {
    i64 position = a.step.angles[t->row + t->rows - 1];
    for (i64 r = 0; a.step.ancestors && r < t->rows; ++r) position = greatest(position, a.step.angles[t->row + r]);
    const i64 blocks = position / a.kv.page_size + 1;
    t->columns = t->rows * (a.hq / a.kv.hkv);
    t->fine = {a.key_shape, &a.kv.compressed, 0, 0, nullptr, nullptr};
    t->coarse = {coarse_shape(a.key_shape), &a.kv.coarse, 0, 0, nullptr, nullptr};
    t->blocks = 0;
    if (position + 1 < a.dense_len || blocks <= a.topk + a.local_blocks) return;
    t->blocks = blocks;
    const i64 paged = a.step.ancestors ? i64(a.step.positions[t->first]) - 1 : position;
    for (KeySet* k : {&t->fine, &t->coarse}) {
        if (k == &t->coarse && !a.lse_approx) break;
        k->visible = num_visible(k->shape, position);
        k->paged = num_visible(k->shape, paged);
    }
}

static SequencePlan plan_of(const SelectArgs& a, i64 j) {
    const i64 group = a.hq / a.kv.hkv;
    SequencePlan p = {};
    p.rows = a.step.cu_rows[j + 1] - a.step.cu_rows[j];
    if (p.rows == 0) return p;
    p.whole.table = a.step.page_table + j * a.step.max_pages;
    p.whole.row = a.step.cu_rows[j];
    p.whole.rows = p.rows;
    p.whole.first = p.whole.row;
    look_back(a, &p.whole);
    const i64 row_bytes = (p.whole.fine.visible + 1) * group * static_cast<i64>(sizeof(float));
    p.size = least(kTileBytes / row_bytes, kMaxTileRows);
    const i64 few = (W + group - 1) / group;  // rows of less than a vector of columns
    p.size = least(p.size < few ? few : p.size, p.rows);
    p.tiles = (p.rows + p.size - 1) / p.size * a.kv.hkv;
    return p;
}

// Tile number `item` of the step, items counted over sequences, rows and kv heads. Its keys lie side by side
// from `base` on.
static SelectTile find_select_tile(const SelectArgs& a, i64 item, bool dot, const float* base) {
    for (i64 j = 0; j < a.step.sequences; ++j) {
        const SequencePlan p = plan_of(a, j);
        if (p.rows == 0) continue;
        const i64 floats = gathered_floats(dot, a.kv.d, p.whole.fine) + gathered_floats(dot, a.kv.d, p.whole.coarse);
        if (item >= p.tiles) {
            item -= p.tiles;
            base += a.kv.hkv * floats;
            continue;
        }
        SelectTile t = p.whole;
        t.head = item % a.kv.hkv;
        base = place_gathered(dot, a.kv.d, base + t.head * floats, &t.fine);
        place_gathered(dot, a.kv.d, base, &t.coarse);
        const KeySet fine = t.fine;
        const KeySet coarse = t.coarse;
        const i64 first = item / a.kv.hkv * p.size;
        t.row += first;
        t.rows = least(p.rows - first, p.size);
        look_back(a, &t);
        t.fine.codes = fine.codes;
        t.fine.scales = fine.scales;
        t.coarse.codes = coarse.codes;
        t.coarse.scales = coarse.scales;
        return t;
    }
    return {};
}

// A tile's memory from `base` on; returns the floats that it takes.
static i64 place_weights(const SelectTile& t, float* base, Weights* w) {
    i64 at = 0;
    const auto take = [&](i64 floats) {
        float* from = base ? base + at : nullptr;
        at += round_up(floats, W);
        return from;
    };
    w->powers = take(round_up(t.fine.visible, kChunk) * t.columns);
    w->tops = take(t.fine.units() * t.columns);
    w->sums = take(t.fine.units() * t.columns);
    w->coarse_tops = take(t.coarse.units() * t.columns);
    w->coarse_sums = take(t.coarse.units() * t.columns);
    w->top = take(t.columns);
    w->inverse = take(t.columns);
    take(W);
    w->scores = take(round_up(t.fine.visible, kChunk));
    w->found = reinterpret_cast<i32*>(take(t.blocks));
    w->left = reinterpret_cast<i64*>(take(2));
    return at;
}

// A thread's memory for tiles of up to `columns`; returns the floats that it takes.
static i64 place_scratch(const SelectArgs& a, i64 columns, float* base, SelectScratch* s) {
    i64 at = 0;
    const auto take = [&](i64 floats) {
        float* from = base ? base + at : nullptr;
        at += round_up(floats, W);
        return from;
    };
    s->queries = take(columns * a.kv.d);
    s->scales = take(columns);
    s->spread = reinterpret_cast<i32*>(take(2 * columns * a.kv.d));
    s->lanes = take(columns * W);
    s->chunk = take(a.kv.d * kChunk);
    s->loaded = take(a.kv.d * kChunk);
    s->powers = take(a.lse_approx ? kUnit * columns : 0);
    s->unit = take(kUnit);
    s->own = take(a.step.ancestors ? a.hq / a.kv.hkv * kChunk : 0);
    s->numbers = reinterpret_cast<i64*>(take(2 * (kUnit + kKeysAhead)));
    s->keys = reinterpret_cast<const i16**>(take(2 * (kUnit + kKeysAhead)));
    return at;
}

// Calls body(tile, unit, offset) for the units [begin, end) of every sequence and kv head, coarse ones first, each
// with `fewest` units at least; offset: floats(tile) of all before. Returns how many units there are.
template <class Floats, class Body>
static i64 each_unit(const SelectArgs& a, i64 begin, i64 end, i64 fewest, Floats floats, Body body) {
    i64 first = 0;
    i64 offset = 0;
    for (i64 j = 0; j < a.step.sequences; ++j) {
        const SequencePlan p = plan_of(a, j);
        if (p.rows == 0) continue;
        const i64 own = p.whole.fine.units() + p.whole.coarse.units();
        const i64 units = own < fewest ? fewest : own;
        for (i64 h = 0; h < a.kv.hkv; ++h, first += units) {
            SelectTile t = p.whole;
            t.head = h;
            for (i64 u = begin > first ? begin - first : 0; u < least(units, end - first); ++u) body(t, u, offset);
            offset += floats(t);
        }
    }
    return first;
}

// Floats of the compressed keys that end in the rows of a step over trees, fine or coarse, from `base` on.
static i64 place_paths(const SelectArgs& a, const Compressed& like, float* base, Compressed* paths) {
    const i64 keys = a.step.ancestors && like.data ? a.step.n * a.kv.hkv : 0;
    const i64 codes = round_up(like.scales ? (keys * a.kv.d + 1) / 2 : keys * a.kv.d, W);
    paths->data = base;
    paths->scales = like.scales && base ? base + codes : nullptr;
    return codes + (like.scales ? round_up(keys, W) : 0);
}

// Computes those keys.
static void fill_paths(Pool& pool, const SelectArgs& a, const Compressed (&paths)[2]) {
    auto fill = [&](i64 begin, i64 end, int) {
        for (const bool coarse : {false, true}) {
            if (coarse && !a.lse_approx) continue;
            const KeyShape shape = coarse ? coarse_shape(a.key_shape) : a.key_shape;
            if (a.kv.kind == KvKind::int8) {
                compress_paths<Int8Page>(a, shape, paths[coarse], begin, end);
            } else if (a.kv.kind == KvKind::bf16) {
                compress_paths<PlainPage<u16>>(a, shape, paths[coarse], begin, end);
            } else {
                compress_paths<PlainPage<float>>(a, shape, paths[coarse], begin, end);
            }
        }
    };
    parallel(pool, a.step.n * a.kv.hkv, 4, fill);
}

// Steps of many rows.
template <bool DOT>
static void select_tiles(Pool& pool, const SelectArgs& a) {
    const i64 d = a.kv.d;
    const auto gathered = [&](const SelectTile& t) {
        return gathered_floats(DOT, d, t.fine) + gathered_floats(DOT, d, t.coarse);
    };
    i64 shared = 0, items = 0, columns = 0, weights = 0;
    const i64 units = each_unit(a, 0, 0, 0, [&](const SelectTile& t) { return (shared += gathered(t), 0); },
                                [](const SelectTile&, i64, i64) {});
    for (i64 j = 0; j < a.step.sequences; ++j) {
        const SequencePlan p = plan_of(a, j);
        if (p.rows == 0) continue;
        SelectTile t = p.whole;
        t.columns = p.size * (a.hq / a.kv.hkv);
        Weights w;
        const i64 floats = place_weights(t, nullptr, &w);
        items += p.tiles;
        columns = t.columns > columns ? t.columns : columns;
        weights = floats > weights ? floats : weights;
    }
    SelectScratch none;
    Compressed paths[2];
    const i64 own = place_scratch(a, columns, nullptr, &none);
    const i64 fine = place_paths(a, a.kv.compressed, nullptr, &paths[0]);
    const i64 before = fine + place_paths(a, a.kv.coarse, nullptr, &paths[1]);
    pool.reserve((own + weights) * static_cast<i64>(sizeof(float)));
    pool.reserve_shared((before + shared) * static_cast<i64>(sizeof(float)));
    float* all = static_cast<float*>(pool.shared());
    place_paths(a, a.kv.compressed, all, &paths[0]);
    place_paths(a, a.kv.coarse, all + fine, &paths[1]);
    if (a.step.ancestors) fill_paths(pool, a, paths);
    all += before;
    auto gather = [&](i64 begin, i64 end, int worker) {
        SelectScratch s;
        place_scratch(a, columns, static_cast<float*>(pool.scratch(worker)), &s);
        each_unit(a, begin, end, 0, gathered, [&](const SelectTile& t, i64 unit, i64 offset) {
            gather_unit<DOT>(a, t, s, unit, all + offset);
        });
    };
    parallel(pool, units, 1, gather);
    auto body = [&](i64 begin, i64 end, int worker) {
        SelectScratch s;
        Weights w;
        float* base = static_cast<float*>(pool.scratch(worker));
        base += place_scratch(a, columns, base, &s);
        s.paths[0] = paths[0];
        s.paths[1] = paths[1];
        for (i64 item = begin; item < end; ++item) {
            const SelectTile t = find_select_tile(a, item, DOT, all);
            place_weights(t, base, &w);
            if (t.blocks > 0) load_queries<DOT>(a, t, s);
            for (i64 u = 0; u < t.coarse.units() + t.fine.units(); ++u) measure<DOT>(a, t, s, w, u);
            finish_tile(a, t, w);
        }
    };
    parallel(pool, items, 1, body);
}

// Floats of all tiles of a step of decoding; 0 where it is none, or where they are too many to be kept.
static i64 decoding_floats(const SelectArgs& a) {
    if (a.step.ancestors) return 0;
    i64 floats = 0;
    for (i64 j = 0; j < a.step.sequences; ++j) {
        const SequencePlan p = plan_of(a, j);
        Weights w;
        if (p.rows > 1) return 0;
        if (p.rows == 1) floats += place_weights(p.whole, nullptr, &w) * a.kv.hkv;
    }
    return floats <= kSharedFloats ? floats : 0;
}

template <bool DOT>
static void select_rows(Pool& pool, const SelectArgs& a, i64 floats) {
    const i64 group = a.hq / a.kv.hkv;
    SelectScratch none;
    pool.reserve(place_scratch(a, group, nullptr, &none) * static_cast<i64>(sizeof(float)));
    pool.reserve_shared(floats * static_cast<i64>(sizeof(float)));
    float* all = static_cast<float*>(pool.shared());
    const auto size = [](const SelectTile& t) {
        Weights w;
        return place_weights(t, nullptr, &w);
    };
    const auto start = [&](const SelectTile& t, i64 unit, i64 offset) {
        Weights w;
        place_weights(t, all + offset, &w);
        if (unit == 0) *w.left = t.fine.units() + t.coarse.units();
    };
    i64 units = 0;
    auto prepare = [&](i64, i64, int) { units = each_unit(a, 0, INT64_MAX, 1, size, start); };
    parallel(pool, 1, 1, prepare);
    auto body = [&](i64 begin, i64 end, int worker) {
        SelectScratch s;
        place_scratch(a, group, static_cast<float*>(pool.scratch(worker)), &s);
        i64 loaded = -1;
        each_unit(a, begin, end, 1, size, [&](const SelectTile& t, i64 unit, i64 offset) {
            Weights w;
            place_weights(t, all + offset, &w);
            if (t.fine.visible > 0) {
                if (loaded != t.row * a.kv.hkv + t.head) {
                    load_queries<DOT>(a, t, s);
                    if (reads_pages(DOT, a.kv.d)) {
                        spread_queries(reinterpret_cast<const i16*>(s.queries), t.columns, a.kv.d, s.spread);
                    }
                    loaded = t.row * a.kv.hkv + t.head;
                }
                measure<DOT>(a, t, s, w, unit);
                if (!is_last(w.left)) return;
            }
            finish_tile(a, t, w);
        });
    };
    parallel(pool, units, greatest(1, units / (8 * pool.threads())), body);
}

template <bool DOT>
static void select_as(Pool& pool, const SelectArgs& a) {
    const i64 floats = decoding_floats(a);
    if (floats > 0) {
        select_rows<DOT>(pool, a, floats);
    } else {
        select_tiles<DOT>(pool, a);
    }
}
