// How attention is cut into tiles, and these into parts; its memory, and its results. Included by attention/attention.hpp.

// Writes sums / total of the queries of rows [first, last); a query that read nothing gets 0.
static void finish_rows(const AttendArgs& a, const AttendTile& t, const Partial& p, i64 first, i64 last) {
    const i64 d = a.kv.d;
    const i64 group = a.hq / a.kv.hkv;
    for (i64 i = first * group; i < last * group; ++i) {
        float* to = a.out + ((t.row + i / group) * a.hq + t.head * group + i % group) * d;
        const V inverse = set1(p.total[i] == 0.0F ? 0.0F : 1.0F / p.total[i]);
        each_vector(d, [&](i64 e, int n) { store_some(to + e, mul(load_some(p.sums + i * d + e, n), inverse), n); });
    }
}

// Writes the results of a tile that has been walked whole.
static void finish_tile(const AttendArgs& a, const AttendTile& t, const AttendScratch& s) {
    const i64 group = a.hq / a.kv.hkv;
    const auto has_one = [&](i64 r) { return s.rows[r].next == s.rows[r].size; };  // range
    for (i64 first = 0, last = 0; first < t.rows; first = last) {
        const bool one = has_one(first);
        while (last < t.rows && has_one(last) == one) ++last;
        if (!one) join(s.whole, s.range, first * group, (last - first) * group, a.kv.d);
        finish_rows(a, t, one ? s.range : s.whole, first, last);
    }
}

// Keeps the last range of each row that has one in the part that has been walked.
static void keep_last_ranges(const AttendArgs& a, const AttendTile& t, const AttendScratch& s) {
    for (i64 r = 0; r < t.rows; ++r) {
        if (s.rows[r].next - s.rows[r].size < s.rows[r].end) take_range(a, t, s, r, r + 1);
    }
}

// The same of one whose ranges are kept apart, from `base` on.
static void finish_ranges(const AttendArgs& a, const AttendTile& t, float* base) {
    const i64 d = a.kv.d;
    const i64 group = a.hq / a.kv.hkv;
    const i64 floats = partial_floats(t.rows * group, d);
    const Partial p = partial_at(base, t.rows * group, d);
    for (i64 r = 0; r < t.rows; ++r) {
        const i64 ranges = ranges_of(pages_of(a, t, r, leaf_in(a, t, r)).count);
        for (i64 i = 1; i < ranges; ++i) join(p, partial_at(base + i * floats, t.rows * group, d), r * group, group, d);
    }
    finish_rows(a, t, p, 0, t.rows);
}

// Rows of a tile: enough that a page is loaded for many, few enough for every thread to have some.
static i64 attend_tile_rows(const AttendArgs& a, i64 threads) {
    const i64 group = a.hq / a.kv.hkv;
    const i64 least = group < kTileQueries ? kTileQueries / group : 1;
    i64 size = has_dot(a.kv) ? kDotFloats / (group * a.kv.d) : least;
    while (size > least && a.step.n * a.kv.hkv < 4 * threads * size) size = (size + 1) / 2;
    return size > least ? size : least;
}

MC_INLINE i64 attend_tiles(const AttendArgs& a, i64 sequence, i64 size) {
    const i64 rows = a.step.cu_rows[sequence + 1] - a.step.cu_rows[sequence];
    return (rows + size - 1) / size * a.kv.hkv;
}

static AttendTile find_attend_tile(const AttendArgs& a, i64 item, i64 size) {
    AttendTile t = {};
    for (i64 j = 0; j < a.step.sequences; ++j) {
        const i64 tiles = attend_tiles(a, j, size);
        if (item < tiles) {
            const i64 end = a.step.cu_rows[j + 1];
            t.table = a.step.page_table + j * a.step.max_pages;
            t.sequence = j;
            t.head = item % a.kv.hkv;
            t.row = a.step.cu_rows[j] + item / a.kv.hkv * size;
            t.rows = end - t.row < size ? end - t.row : size;
            t.base = a.step.positions[a.step.cu_rows[j]];
            t.tail = a.step.ancestors ? t.base / a.kv.page_size : kNoPage;
            break;
        }
        item -= tiles;
    }
    return t;
}

struct AttendPlan {
    i64 rows;     // of a tile
    i64 tiles;
    i64 parts;    // of each tile
    i64 m;        // queries of the largest tile
    i64 partial;  // floats of its Partial
    i64 ranges;   // most ranges of a row
};

static AttendPlan plan_attend(const AttendArgs& a, i64 threads) {
    AttendPlan plan = {};
    plan.rows = attend_tile_rows(a, threads);
    i64 pages = 0;
    i64 rows = 0;
    for (i64 j = 0; j < a.step.sequences; ++j) {
        const i64 own = a.step.cu_rows[j + 1] - a.step.cu_rows[j];
        if (own == 0) continue;
        plan.tiles += attend_tiles(a, j, plan.rows);
        rows = own > rows ? own : rows;
        i64 reach = a.step.positions[a.step.cu_rows[j + 1] - 1] / a.kv.page_size + 1;
        if (a.kv.window > 0 && a.kv.window / a.kv.page_size + 2 < reach) reach = a.kv.window / a.kv.page_size + 2;
        pages = reach > pages ? reach : pages;
    }
    const i64 group = a.hq / a.kv.hkv;
    plan.m = (rows < plan.rows ? rows : plan.rows) * group;
    plan.partial = partial_floats(plan.m, a.kv.d);
    plan.ranges = most_ranges(a.blocks ? greatest(pages, a.budget) : pages);
    plan.parts = 1;
    if (plan.tiles > 0 && threads > 1 && plan.tiles < 4 * threads) {
        plan.parts = (4 * threads + plan.tiles - 1) / plan.tiles;
        if (a.blocks && a.budget < pages && a.step.n == a.step.sequences) pages = a.budget;
        plan.parts = greatest(least(plan.parts, most_ranges(pages)), 1);
    }
    return plan;
}

static void attend(Pool& pool, const AttendArgs& a) {
    const AttendPlan plan = plan_attend(a, pool.threads());
    const i64 d = a.kv.d;
    const i64 group = a.hq / a.kv.hkv;
    const i64 area = a.kv.kind == KvKind::f32 ? 0 : round_up(d * a.kv.page_size, W);
    const i64 queries = round_up(plan.m * d, W);
    const i64 scores = plan.m * round_up(a.kv.page_size, W);
    const i64 rows = round_up(plan.rows * static_cast<i64>(sizeof(RowWalk) / sizeof(float)), W);
    const i64 dot = has_dot(a.kv) ? dot_floats(plan.m, d) : 0;
    const i64 amx = has_tiles(a.kv) ? amx_floats(plan.m, d) : 0;
    const i64 path = a.step.ancestors ? place_path_page(a.kv, nullptr, nullptr) : 0;
    const bool split = plan.parts > 1;
    const i64 floats = queries + scores + 2 * area + rows + 2 * plan.partial + dot + amx + path;
    pool.reserve(floats * static_cast<i64>(sizeof(float)));
    if (split) {
        pool.reserve_shared(plan.tiles * plan.ranges * plan.partial * static_cast<i64>(sizeof(float)));
    }
    auto walk = [&](i64 begin, i64 end, int worker) {
        [[maybe_unused]] HeldTiles tiles;
        AttendScratch s = {};
        s.queries = static_cast<float*>(pool.scratch(worker));
        s.scores = s.queries + queries;
        s.keys = s.scores + scores;
        s.values = s.keys + area;
        s.rows = reinterpret_cast<RowWalk*>(s.values + area);
        float* partials = s.values + area + rows;
        float* others = partials + 2 * plan.partial;
        s.dot = dot_scratch(others, plan.m, d);
        s.amx = amx_scratch(others + dot, d, &tiles);
        PathPage held = {};
        if (path > 0) place_path_page(a.kv, others + dot + amx, &held);
        s.path = &held;
        for (i64 item = begin; item < end; ++item) {
            const i64 number = item / plan.parts;
            const AttendTile t = find_attend_tile(a, number, plan.rows);
            s.range = partial_at(partials, t.rows * group, d);
            s.whole = partial_at(partials + plan.partial, t.rows * group, d);
            if (split) s.ranges = static_cast<float*>(pool.shared()) + number * plan.ranges * plan.partial;
            attend_tile(a, t, s, {item % plan.parts, plan.parts});
            split ? keep_last_ranges(a, t, s) : finish_tile(a, t, s);
        }
    };
    parallel(pool, plan.tiles * plan.parts, 1, walk);
    if (!split) return;
    auto finish = [&](i64 begin, i64 end, int) {
        for (i64 item = begin; item < end; ++item) {
            float* ranges = static_cast<float*>(pool.shared()) + item * plan.ranges * plan.partial;
            finish_ranges(a, find_attend_tile(a, item, plan.rows), ranges);
        }
    };
    parallel(pool, plan.tiles, 1, finish);
}
