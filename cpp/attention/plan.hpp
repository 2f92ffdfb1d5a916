// How attention is cut into tiles and parts, its memory, and the merging of parts. Included by attention/attention.hpp.

static constexpr i64 kMinPartPages = 8;   // fewer pages are not worth a thread

// Writes sums / total of a tile's queries; a query that read nothing gets 0.
static void finish_tile(const AttendArgs& a, const AttendTile& t, const Partial& p) {
    const i64 d = a.kv.d;
    const i64 group = a.hq / a.kv.hkv;
    for (i64 i = 0; i < t.rows * group; ++i) {
        float* to = a.out + ((t.row + i / group) * a.hq + t.head * group + i % group) * d;
        const V inverse = set1(p.total[i] == 0.0F ? 0.0F : 1.0F / p.total[i]);
        each_vector(d, [&](i64 e, int n) { store_some(to + e, mul(load_some(p.sums + i * d + e, n), inverse), n); });
    }
}

// Adds the softmax of `other` to that of `p`, query by query.
static void merge(const Partial& p, const Partial& other, i64 m, i64 d) {
    for (i64 i = 0; i < m; ++i) {
        if (other.total[i] == 0.0F) continue;
        const float top = p.top[i] > other.top[i] ? p.top[i] : other.top[i];
        float ours[W];
        float theirs[W];
        store(ours, exp(set1(p.total[i] == 0.0F ? -INFINITY : p.top[i] - top)));
        store(theirs, exp(set1(other.top[i] - top)));
        p.top[i] = top;
        p.total[i] = p.total[i] * ours[0] + other.total[i] * theirs[0];
        for (i64 e = 0; e < d; ++e) {
            p.sums[i * d + e] = p.sums[i * d + e] * ours[0] + other.sums[i * d + e] * theirs[0];
        }
    }
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

// First page of part `part` of `parts`: the last row's pages are shared out evenly.
static i64 part_start(const AttendArgs& a, const AttendTile& t, i64 part, i64 parts) {
    if (part == 0) return 0;
    const PageList list = pages_of(a, t, t.rows - 1, leaf_in(a, t, t.rows - 1));
    const i64 index = list.count * part / parts;
    return part == parts || index == list.count ? kNoPage : page_at(list, index);
}

struct AttendPlan {
    i64 rows;     // of a tile
    i64 tiles;
    i64 parts;    // of each tile
    i64 m;        // queries of the largest tile
    i64 partial;  // floats of its Partial
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
    plan.partial = round_up(plan.m * (a.kv.d + 2), W);
    plan.parts = 1;
    if (plan.tiles > 0 && threads > 1 && plan.tiles < 4 * threads) {
        plan.parts = (4 * threads + plan.tiles - 1) / plan.tiles;
        if (a.blocks && a.budget < pages && a.step.n == a.step.sequences) pages = a.budget;
        if (plan.parts > pages / kMinPartPages) plan.parts = pages / kMinPartPages;
        if (plan.parts < 1) plan.parts = 1;
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
    const i64 next = round_up(6 * plan.rows, W);  // three arrays of i64
    const i64 dot = has_dot(a.kv) ? dot_floats(plan.m, d) : 0;
    const i64 amx = has_tiles(a.kv) ? amx_floats(plan.m, d) : 0;
    const i64 path = a.step.ancestors ? place_path_page(a.kv, nullptr, nullptr) : 0;
    const i64 floats = queries + scores + 2 * area + next + plan.partial + dot + amx + path;
    pool.reserve(floats * static_cast<i64>(sizeof(float)));
    const bool split = plan.parts > 1;
    if (split) {
        pool.reserve_shared(plan.tiles * plan.parts * plan.partial * static_cast<i64>(sizeof(float)));
    }
    auto walk = [&](i64 begin, i64 end, int worker) {
        [[maybe_unused]] HeldTiles tiles;
        AttendScratch s = {};
        s.queries = static_cast<float*>(pool.scratch(worker));
        s.scores = s.queries + queries;
        s.keys = s.scores + scores;
        s.values = s.keys + area;
        s.next = reinterpret_cast<i64*>(s.values + area);
        s.page = s.next + plan.rows;
        s.leaf = s.page + plan.rows;
        s.partial = s.values + area + next;
        s.dot = dot_scratch(s.partial + plan.partial, plan.m, d);
        s.amx = amx_scratch(s.partial + plan.partial + dot, d, &tiles);
        PathPage held = {};
        if (path > 0) place_path_page(a.kv, s.partial + plan.partial + dot + amx, &held);
        s.path = &held;
        for (i64 item = begin; item < end; ++item) {
            const i64 part = item % plan.parts;
            const AttendTile t = find_attend_tile(a, item / plan.parts, plan.rows);
            float* base = split ? static_cast<float*>(pool.shared()) + item * plan.partial : s.partial;
            const Partial p = partial_at(base, t.rows * group, d);
            attend_tile(a, t, s, p, part_start(a, t, part, plan.parts),
                        part_start(a, t, part + 1, plan.parts));
            if (!split) finish_tile(a, t, p);
        }
    };
    parallel(pool, plan.tiles * plan.parts, 1, walk);
    if (!split) return;
    auto join = [&](i64 begin, i64 end, int) {
        for (i64 item = begin; item < end; ++item) {
            const AttendTile t = find_attend_tile(a, item, plan.rows);
            const i64 m = t.rows * group;
            float* base = static_cast<float*>(pool.shared()) + item * plan.parts * plan.partial;
            const Partial p = partial_at(base, m, d);
            for (i64 i = 1; i < plan.parts; ++i) merge(p, partial_at(base + i * plan.partial, m, d), m, d);
            finish_tile(a, t, p);
        }
    };
    parallel(pool, plan.tiles, 1, join);
}
