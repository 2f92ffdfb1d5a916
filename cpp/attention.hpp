// Attention over pages, dense or over chosen blocks. Included by each instruction set's unit.
//
// A tile is a few query rows of one sequence with the heads of one kv head, walked page by page with
// an online softmax. Each row reads its own list of pages; rows that read the same page next share
// its conversion and one matrix product. Few tiles (decoding): each is split into parts of its pages,
// which are merged at the end.

#include "append.hpp"
#include "select.hpp"

static constexpr i64 kTileQueries = 64;   // (row, head) pairs of a tile, where a group is not larger
static constexpr i64 kMinPartPages = 8;   // fewer pages are not worth a thread

struct AttendTile {
    const i32* table;
    i64 sequence;
    i64 row;    // first row
    i64 rows;
    i64 head;   // kv head
};

// A softmax under way: sums (m, d) of weighted values, top (m) largest score, total (m) of weights.
struct Partial {
    float* sums;
    float* top;
    float* total;
};

#include "attention_dot.hpp"
#include "attention_amx.hpp"

struct AttendScratch {
    float* queries;  // (rows * group, d), scaled
    float* scores;   // (rows * group, P rounded up to W)
    float* keys;     // (d, P), where pages are not float32
    float* values;   // (P, d)
    i64* next;       // (rows) index into each row's list
    i64* page;       // (rows) the page there, or the end of the walk
    float* partial;  // see Partial
    DotScratch dot;  // where has_dot(kv)
    AmxScratch amx;  // where has_tiles(kv)
};

MC_INLINE Partial partial_at(float* base, i64 m, i64 d) { return {base, base + m * d, base + m * (d + 1)}; }

// The pages that one row reads: a list, or 0 to count - 1 where list is null.
struct PageList {
    const i32* list;
    i64 count;
};

MC_INLINE PageList pages_of(const AttendArgs& a, const AttendTile& t, i64 r) {
    const i64 index = (t.row + r) * a.kv.hkv + t.head;
    if (a.blocks && a.counts[index] >= 0) return {a.blocks + index * a.budget, a.counts[index]};
    return {nullptr, a.step.positions[t.row + r] / a.kv.page_size + 1};
}

MC_INLINE i64 page_at(PageList p, i64 i) { return p.list ? p.list[i] : i; }

// Index of the first page >= page.
MC_INLINE i64 first_from(PageList p, i64 page) {
    if (!p.list) return page < p.count ? page : p.count;
    i64 low = 0;
    i64 high = p.count;
    while (low < high) {
        const i64 middle = (low + high) / 2;
        if (p.list[middle] < page) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

static void scale_queries(const AttendArgs& a, const AttendTile& t, float* to) {
    const i64 d = a.kv.d;
    const i64 group = a.hq / a.kv.hkv;
    const float scale = 1.0F / sqrtf(static_cast<float>(d));
    for (i64 r = 0; r < t.rows; ++r) {
        const float* from = a.q + ((t.row + r) * a.hq + t.head * group) * d;
        for (i64 i = 0; i < group * d; ++i) to[r * group * d + i] = from[i] * scale;
    }
}

// Folds `count` scores of one query into its softmax; scores become weights. Rescales the sums.
MC_INLINE void soften(float* scores, i64 count, float* sums, i64 d, float* top, float* total) {
    for (i64 i = count; i < round_up(count, W); ++i) scores[i] = -INFINITY;
    V most = set1(*top);
    for (i64 i = 0; i < count; i += W) most = max(load(scores + i), most);
    const float peak = hmax(most);
    const V base = set1(peak == -INFINITY ? 0.0F : peak);  // all hidden: no weight, and no NaN
    if (peak > *top) {
        float scale[W];
        store(scale, exp(sub(set1(*top), base)));
        *total *= scale[0];
        each_vector(d, [&](i64 i, int n) {
            store_some(sums + i, mul(load_some(sums + i, n), set1(scale[0])), n);
        });
        *top = peak;
    }
    V weights = zero();
    for (i64 i = 0; i < count; i += W) {
        const V weight = exp(sub(load(scores + i), base));
        weights = add(weights, weight);
        store(scores + i, weight);
    }
    *total += hsum(weights);
}

// Rows [first, last) read the page that starts at token `start`. Each reads the tokens at or before
// its own position: of what is behind, nothing reaches a result, not even as 0 * NaN.
static void attend_page(const AttendArgs& a, const AttendTile& t, const AttendScratch& s, const Partial& p,
                        i64 first, i64 last, i64 start, const float* keys, const float* values) {
    const i64 d = a.kv.d;
    const i64 size = a.kv.page_size;
    const i64 width = round_up(size, W);
    const i64 group = a.hq / a.kv.hkv;
    const auto tokens = [&](i64 r) {
        const i64 count = a.step.positions[t.row + r] + i64(1) - start;
        return count < size ? count : size;
    };
    const i64 m = (last - first) * group;
    float* scores = s.scores + first * group * width;
    float* sums = p.sums + first * group * d;
    tile(m, tokens(last - 1), d, s.queries + first * group * d, d, keys, size, scores, width, false);
    for (i64 r = first; r < last; ++r) {
        for (i64 i = r * group; i < (r + 1) * group; ++i) {
            soften(s.scores + i * width, tokens(r), p.sums + i * d, d, p.top + i, p.total + i);
        }
    }
    const i64 common = tokens(first);  // positions ascend: every row reads at least these
    tile(m, d, common, scores, width, values, d, sums, d, true);
    for (i64 r = first + 1; r < last; ++r) {
        const i64 i = (r - first) * group;
        if (tokens(r) == common) continue;
        tile(group, d, tokens(r) - common, scores + i * width + common, width, values + common * d, d,
             sums + i * d, d, true);
    }
}

static void to_float(const u16* from, i64 count, float* to) {
    i64 i = 0;
    for (; i + W <= count; i += W) store(to + i, load_bf16(from + i));
    for (; i < count; ++i) to[i] = bf16_value(from[i]);
}

// Floats of a (page, head) that is not float32: keys (d, P) and values (P, d).
static void load_page(const KvView& kv, i64 at, float* keys, float* values) {
    const i64 size = kv.page_size;
    const i64 area = kv.d * size;
    if (kv.kind == KvKind::bf16) {
        to_float(static_cast<const u16*>(kv.keys) + at * area, area, keys);
        to_float(static_cast<const u16*>(kv.values) + at * area, area, values);
        return;
    }
    const Int8Page page(kv, at);
    for (i64 i = 0; i < kv.d; ++i) {
        const i8* from = page.keys + i / 2 * size * 2 + i % 2;
        for (i64 t = 0; t < size; ++t) keys[i * size + t] = static_cast<float>(from[2 * t]) * page.key_scales[t];
    }
    for (i64 t = 0; t < size; ++t) {
        const i8* from = page.values + t / 2 * kv.d * 2 + t % 2;
        const float scale = page.value_scales[t];
        for (i64 i = 0; i < kv.d; ++i) values[t * kv.d + i] = static_cast<float>(from[2 * i]) * scale;
    }
}

// The page that row r reads after the one where it is, or `high`.
MC_INLINE i64 page_after(const AttendArgs& a, const AttendTile& t, const AttendScratch& s, i64 r, i64 high) {
    const PageList list = pages_of(a, t, r);
    const i64 page = s.next[r] < list.count ? page_at(list, s.next[r]) : high;
    return page < high ? page : high;
}

MC_INLINE void move_on(const AttendArgs& a, const AttendTile& t, const AttendScratch& s, i64 r, i64 high) {
    s.page[r] = page_after(a, t, s, r, high);
    ++s.next[r];
}

static void start_tile(const AttendArgs& a, const AttendTile& t, const AttendScratch& s, const Partial& p,
                       i64 low, i64 high) {
    const i64 m = t.rows * (a.hq / a.kv.hkv);
    for (i64 i = 0; i < m * a.kv.d; ++i) p.sums[i] = 0.0F;
    for (i64 i = 0; i < m; ++i) {
        p.top[i] = -INFINITY;
        p.total[i] = 0.0F;
    }
    scale_queries(a, t, s.queries);
    if (has_dot(a.kv)) load_dot_queries(s.queries, m, a.kv.d, s.dot);
    if (has_tiles(a.kv)) load_amx_queries(s.queries, m, a.kv.d, s.amx);
    for (i64 r = 0; r < t.rows; ++r) {
        s.next[r] = first_from(pages_of(a, t, r), low);
        move_on(a, t, s, r, high);
    }
}

// Rows that come to `page`, by dot products where queries and page allow it; they move on. Whether to try
// again: rows are left that see more of the page than those did.
static bool attend_pairs(const AttendArgs& a, const AttendTile& t, const AttendScratch& s, const Partial& p,
                         i64 page, i64 high) {
    const i64 group = a.hq / a.kv.hkv;
    const bool int8 = a.kv.kind == KvKind::int8;
    const auto takes = [&](i64 r) {
        if (s.page[r] != page) return false;
        bool usable = true;
        for (i64 i = r * group; i < (r + 1) * group; ++i) usable = usable && s.dot.scales[i] > 0.0F;
        return usable;
    };
    i64 m = 0;
    i64 next = high;
    for (i64 r = 0; r < t.rows; ++r) {
        const i64 after = s.page[r] == page ? page_after(a, t, s, r, high) : s.page[r];
        next = after < next ? after : next;
        if (!takes(r)) continue;
        for (i64 i = r * group; i < (r + 1) * group; ++i) s.dot.who[m++] = static_cast<i32>(i);
    }
    Ahead ahead = {};
    if (next < high) ahead = pages_ahead(a.kv, t.table[next] * a.kv.hkv + t.head);
    const i64 at = t.table[page] * a.kv.hkv + t.head;
    if (m == 0) return false;
    const Seen seen = {a.step.positions + t.row, group, page * a.kv.page_size};
    const i64 least = seen.count(s.dot.who[0]);
    const bool few = least == a.kv.page_size && has_few(m, a.kv.d);
    i64 left = 0;
    if (int8) {
        if (!attend_int8(a.kv, at, s.dot, m, seen, p, ahead)) return false;
    } else if (few) {
        if (!attend_few(a.kv, at, s.dot, m, p, ahead)) return false;
    } else {
        const i64 count = load_dot_page(a.kv, at, least, seen.count(s.dot.who[m - 1]), !has_tiles(a.kv), s.dot.page, ahead);
        for (; m > 0 && seen.count(s.dot.who[m - 1]) > count; --m) ++left;
        if (m == 0) return false;
    }
    for (i64 i = 0; i < m; i += group) move_on(a, t, s, s.dot.who[i] / group, high);
    if (!int8 && !few && has_tiles(a.kv)) {
        attend_amx(s.dot, s.amx, m, t.rows * group, a.kv.d, seen, p, ahead);
    } else if (!int8 && !few) {
        attend_dot(s.dot, m, a.kv.d, seen, p, ahead);
    }
    return left > 0;
}

// Rows that come to `page` (and are not past it by now), in float32; they move on.
static void attend_rest(const AttendArgs& a, const AttendTile& t, const AttendScratch& s, const Partial& p,
                        i64 page, i64 high) {
    const i64 at = t.table[page] * a.kv.hkv + t.head;
    bool loaded = a.kv.kind == KvKind::f32;
    const i64 offset = loaded ? at * a.kv.d * a.kv.page_size : 0;
    const float* keys = loaded ? static_cast<const float*>(a.kv.keys) + offset : s.keys;
    const float* values = loaded ? static_cast<const float*>(a.kv.values) + offset : s.values;
    for (i64 first = 0; first < t.rows;) {
        i64 last = first;
        while (last < t.rows && s.page[last] == page) move_on(a, t, s, last++, high);
        if (last > first && !loaded) {
            load_page(a.kv, at, s.keys, s.values);
            loaded = true;
        }
        if (last > first) attend_page(a, t, s, p, first, last, page * a.kv.page_size, keys, values);
        first = last > first ? last : first + 1;
    }
}

// Walks the pages [low, high) (numbers within the sequence) that the rows of a tile read.
static void attend_tile(const AttendArgs& a, const AttendTile& t, const AttendScratch& s, const Partial& p,
                        i64 low, i64 high) {
    start_tile(a, t, s, p, low, high);
    for (;;) {
        i64 page = high;
        for (i64 r = 0; r < t.rows; ++r) page = s.page[r] < page ? s.page[r] : page;
        if (page >= high) return;
        while (has_dot(a.kv) && attend_pairs(a, t, s, p, page, high)) {
        }
        attend_rest(a, t, s, p, page, high);
    }
}

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
            break;
        }
        item -= tiles;
    }
    return t;
}

// First page of part `part` of `parts`: the last row's pages are shared out evenly.
static i64 part_start(const AttendArgs& a, const AttendTile& t, i64 part, i64 parts) {
    const PageList list = pages_of(a, t, t.rows - 1);
    const i64 index = list.count * part / parts;
    if (part == 0) return 0;
    return part == parts || index == list.count ? a.step.max_pages : page_at(list, index);
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
        const i64 reach = a.step.positions[a.step.cu_rows[j + 1] - 1] / a.kv.page_size + 1;
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
    const i64 next = round_up(4 * plan.rows, W);  // two arrays of i64
    const i64 dot = has_dot(a.kv) ? dot_floats(plan.m, d) : 0;
    const i64 amx = has_tiles(a.kv) ? amx_floats(plan.m, d) : 0;
    const i64 floats = queries + scores + 2 * area + next + plan.partial + dot + amx;
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
        s.partial = s.values + area + next;
        s.dot = dot_scratch(s.partial + plan.partial, plan.m, d);
        s.amx = amx_scratch(s.partial + plan.partial + dot, d, &tiles);
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

static const AttentionTable attention_table = {append, select, attend};
