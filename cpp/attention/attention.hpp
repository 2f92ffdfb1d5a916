// Attention over pages, dense or over chosen blocks. Included by each instruction set's unit.
//
// A tile is a few query rows of one sequence with the heads of one kv head, walked page by page with
// an online softmax. Each row reads its own list of pages, in ranges (attention/ranges.hpp); rows that read the
// same page next share its conversion and one matrix product. Few tiles (decoding): threads share the ranges of each.
// Of a tree of drafts rows share the pages of the text before it; the others are put together path by path
// (attention/path_page.hpp), and then pages as any.
//
// A row's bits depend on the row, its list and what is in its pages alone. Hence whatever takes a page for several rows
// adds for each what it would for that row alone, in the same order; and which of the ways takes a page goes by the row.

#include "attention/append.hpp"
#include "select/select.hpp"

static constexpr i64 kTileQueries = 64;   // (row, head) pairs of a tile, where a group is not larger

struct AttendTile {
    const i32* table;
    i64 sequence;
    i64 row;    // first row
    i64 rows;
    i64 head;   // kv head
    i64 base;   // of a tree: the position of its first row
    i64 tail;   // of a tree: the first page that may have drafts
};

#include "attention/ranges.hpp"

#include "attention/seen.hpp"

#include "attention/dot.hpp"
#include "attention/amx.hpp"

#include "attention/path_page.hpp"

// The pages that one row reads: a list, or `count` from `first` on where list is null. Of those from `tail` on, which rows of a
// tree have for their path alone, the numbers in the walk are higher by `shift`.
struct PageList {
    const i32* list;
    i64 count;
    i64 tail;
    i64 shift;
    i64 first;
};

// Where a row is in its list.
struct RowWalk {
    PageList list;
    i64 index;  // of the page where it is
    i64 page;   // its number, kNoPage behind the end
    i64 end;    // index at which the walk ends
    i64 size;   // pages of a range
    i64 next;   // index at which the next range begins
};

struct AttendScratch {
    float* queries;  // (rows * group, d), scaled
    float* scores;   // (rows * group, P rounded up to W)
    float* keys;     // (d, P), where pages are not float32
    float* values;   // (P, d)
    RowWalk* rows;   // (rows)
    PathPage* path;  // of a tree
    Partial range;   // of each row the range that it reads
    Partial whole;   // the ranges before, where none are kept apart
    float* ranges;   // the first of the tile's ranges, each a Partial, where they are
    DotScratch dot;  // where has_dot(kv)
    AmxScratch amx;  // where has_tiles(kv)
};

MC_INLINE PageList pages_of(const AttendArgs& a, const AttendTile& t, i64 r, i64 leaf) {
    const i64 index = (t.row + r) * a.kv.hkv + t.head;
    const i64 shift = leaf * kPathPages;
    if (a.blocks && a.counts[index] >= 0) return {a.blocks + index * a.budget, a.counts[index], t.tail, shift, 0};
    const i64 place = a.step.angles[t.row + r];
    const i64 hidden = a.kv.window > 0 ? place + 1 - a.kv.window : 0;
    const i64 first = hidden > 0 ? hidden / a.kv.page_size : 0;
    return {nullptr, place / a.kv.page_size + 1 - first, t.tail, shift, first};
}

MC_INLINE i64 page_at(PageList p, i64 i) {
    const i64 page = p.list ? p.list[i] : p.first + i;
    return page < p.tail ? page : page + p.shift;
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
    V most = set1(-INFINITY);
    for (i64 i = 0; i < count; i += W) most = max(load(scores + i), most);
    const float peak = hmax(most);
    if (peak > *top + kSlack) {
        if (*total != 0.0F) {
            float scale[W];
            store(scale, exp(set1(*top - peak)));
            *total *= scale[0];
            each_vector(d, [&](i64 i, int n) {
                store_some(sums + i, mul(load_some(sums + i, n), set1(scale[0])), n);
            });
        }
        *top = peak;
    }
    const V base = set1(*top == -INFINITY ? 0.0F : *top);  // all hidden: no weight, and no NaN
    V weights = zero();
    for (i64 i = 0; i < count; i += W) {
        const V weight = exp(sub(load(scores + i), base));
        weights = add(weights, weight);
        store(scores + i, weight);
    }
    *total += hsum(weights);
}

// Rows [first, last) read a page, of which some are hidden by their windows.
static void attend_cut_page(const AttendScratch& s, const Partial& p, i64 d, i64 group, i64 first, i64 last,
                            i64 width, const Seen& seen, const float* values) {
    for (i64 r = first; r < last; ++r) {
        const i64 hidden = seen.hidden(r), count = seen.count(r);
        for (i64 i = r * group; i < (r + 1) * group; ++i) {
            float* scores = s.scores + i * width;
            for (i64 e = 0; e < hidden; ++e) scores[e] = -INFINITY;
            soften(scores, count, p.sums + i * d, d, p.top + i, p.total + i);
        }
        tile(group, d, count - hidden, s.scores + r * group * width + hidden, width, values + hidden * d, d,
             p.sums + r * group * d, d, true);
    }
}

static bool are_finite(const float* x, i64 n) {
    V sum = zero();
    each_vector(n, [&](i64 i, int count) { sum = fma(load_some(x + i, count), zero(), sum); });
    return hsum(sum) == 0.0F;
}

// Rows [first, last) read a page. Of what one does not see nothing reaches a result, not even as 0 * NaN.
static void attend_page(const AttendArgs& a, const AttendScratch& s, const Partial& p, i64 first, i64 last,
                        const Seen& seen, const float* keys, const float* values) {
    const i64 d = a.kv.d;
    const i64 size = a.kv.page_size;
    const i64 width = round_up(size, W);
    const i64 group = a.hq / a.kv.hkv;
    const i64 m = (last - first) * group;
    float* scores = s.scores + first * group * width;
    float* sums = p.sums + first * group * d;
    tile(m, seen.count(last - 1), d, s.queries + first * group * d, d, keys, size, scores, width, false);
    if (seen.hidden(last - 1) > 0) {  // places ascend
        attend_cut_page(s, p, d, group, first, last, width, seen, values);
        return;
    }
    const i64 least_seen = seen.count(first), most_seen = seen.count(last - 1);
    for (i64 r = first; r < last; ++r) {
        for (i64 i = r * group; i < (r + 1) * group; ++i) {
            float* row = s.scores + i * width;
            soften(row, seen.count(r), p.sums + i * d, d, p.top + i, p.total + i);
            for (i64 e = seen.count(r); e < most_seen; ++e) row[e] = 0.0F;
        }
    }
    // Adding 0 times a number changes no bit, and 0 times what is none would.
    if (are_finite(values + least_seen * d, (most_seen - least_seen) * d)) {
        tile(m, d, most_seen, scores, width, values, d, sums, d, true);
        return;
    }
    for (i64 r = first; r < last; ++r) {
        const i64 i = (r - first) * group;
        tile(group, d, seen.count(r), scores + i * width, width, values, d, sums + i * d, d, true);
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

MC_INLINE Seen seen_of(const AttendArgs& a, const AttendTile& t, i64 page) {
    return {a.step.angles + t.row, block_of(t, page) * a.kv.page_size, a.kv.page_size, a.kv.window};
}

// The page that a row reads after the one where it is.
MC_INLINE i64 page_after(const RowWalk& w) { return w.index + 1 < w.end ? page_at(w.list, w.index + 1) : kNoPage; }

MC_INLINE void move_on(RowWalk* w) {
    w->page = page_after(*w);
    ++w->index;
}

// Which of the ranges of each row of a tile are read: those of part `part` of `parts`.
struct TilePart {
    i64 part;
    i64 parts;
};

MC_INLINE RowWalk start_row(const AttendArgs& a, const AttendTile& t, i64 r, TilePart part) {
    RowWalk w;
    w.list = pages_of(a, t, r, leaf_in(a, t, r));
    w.size = range_of(w.list.count);
    const i64 ranges = ranges_of(w.list.count);
    w.index = ranges * part.part / part.parts * w.size;
    w.end = least(ranges * (part.part + 1) / part.parts * w.size, w.list.count);
    w.next = w.index + w.size;
    w.page = w.index < w.end ? page_at(w.list, w.index) : kNoPage;
    return w;
}

static void start_tile(const AttendArgs& a, const AttendTile& t, const AttendScratch& s, TilePart part) {
    const i64 m = t.rows * (a.hq / a.kv.hkv);
    clear(s.range, 0, m, a.kv.d);
    scale_queries(a, t, s.queries);
    if (has_dot(a.kv)) load_dot_queries(s.queries, m, a.kv.d, s.dot);
    if (has_tiles(a.kv)) load_amx_queries(s.queries, m, a.kv.d, s.amx);
    s.path->page = -1;
    for (i64 r = 0; r < t.rows; ++r) s.rows[r] = start_row(a, t, r, part);
}

// Of rows [first, last), which have read as many ranges: takes what the last one has found.
static void take_range(const AttendArgs& a, const AttendTile& t, const AttendScratch& s, i64 first, i64 last) {
    const i64 d = a.kv.d;
    const i64 group = a.hq / a.kv.hkv;
    const i64 index = s.rows[first].next / s.rows[first].size - 1;
    if (s.ranges) {
        float* base = s.ranges + index * partial_floats(t.rows * group, d);
        copy(partial_at(base, t.rows * group, d), s.range, first * group, (last - first) * group, d);
    } else if (index == 0) {
        copy(s.whole, s.range, first * group, (last - first) * group, d);
    } else {
        join(s.whole, s.range, first * group, (last - first) * group, d);
    }
}

// The number of the range that a row begins with `page`, 0 where it begins none or its first one.
MC_INLINE i64 range_begun(const RowWalk& w, i64 page) {
    return w.page == page && w.index == w.next ? w.index / w.size : 0;
}

// Rows that come to `page` as the first one of a range.
static void begin_ranges(const AttendArgs& a, const AttendTile& t, const AttendScratch& s, i64 page) {
    const i64 group = a.hq / a.kv.hkv;
    for (i64 first = 0, last = 0; first < t.rows; first = last) {
        const i64 number = range_begun(s.rows[first], page);
        while (last < t.rows && range_begun(s.rows[last], page) == number) ++last;
        if (number == 0) continue;
        take_range(a, t, s, first, last);
        clear(s.range, first * group, (last - first) * group, a.kv.d);
        for (i64 r = first; r < last; ++r) s.rows[r].next += s.rows[r].size;
    }
}

// Rows that come to `page`, by dot products where queries, page and windows allow it; they move on. Whether to try
// again: rows are left that see more of the page than those did.
static bool attend_pairs(const AttendArgs& a, const AttendTile& t, const AttendScratch& s, i64 page) {
    const Partial& p = s.range;
    const i64 group = a.hq / a.kv.hkv;
    const bool int8 = a.kv.kind == KvKind::int8;
    const Seen seen = seen_of(a, t, page);
    const auto takes = [&](i64 r) {
        if (s.rows[r].page != page || seen.hidden(r) > 0) return false;
        bool usable = true;
        for (i64 i = r * group; i < (r + 1) * group; ++i) usable = usable && s.dot.scales[i] > 0.0F;
        return usable;
    };
    i64 m = 0;
    i64 next = kNoPage;
    for (i64 r = 0; r < t.rows; ++r) {
        const i64 after = s.rows[r].page == page ? page_after(s.rows[r]) : s.rows[r].page;
        next = after < next ? after : next;
        if (!takes(r)) continue;
        for (i64 i = r * group; i < (r + 1) * group; ++i) s.dot.who[m++] = static_cast<i32>(i);
    }
    Ahead ahead = {};
    if (next < kNoPage && next < t.tail) ahead = pages_ahead(a.kv, t.table[next] * a.kv.hkv + t.head);
    if (m == 0) return false;
    const PagePlace place = place_of(a, t, s.path, page);
    const KvView& kv = *place.kv;
    const i64 at = place.at;
    const i64 least = seen.count(s.dot.who[0] / group);
    const DotSeen pairs = {seen, group, least == a.kv.page_size};
    const bool few = least == a.kv.page_size && !has_tiles(kv) && has_few(m, a.kv.d);
    i64 left = 0;
    if (int8) {
        const i64 count = int8_usable(kv, at, pairs.count(s.dot.who[m - 1]));
        for (; m > 0 && pairs.count(s.dot.who[m - 1]) > count; --m) ++left;
        if (m == 0) return false;
        attend_int8(kv, at, s.dot, m, pairs, p, ahead);
    } else if (few) {
        if (!attend_few(kv, at, s.dot, m, p, ahead)) return false;
    } else {
        const i64 count = load_dot_page(kv, at, least, pairs.count(s.dot.who[m - 1]), !has_tiles(a.kv), s.dot.page, ahead);
        for (; m > 0 && pairs.count(s.dot.who[m - 1]) > count; --m) ++left;
        if (m == 0) return false;
    }
    for (i64 i = 0; i < m; i += group) move_on(s.rows + s.dot.who[i] / group);
    if (!int8 && !few && has_tiles(a.kv)) {
        attend_amx(s.dot, s.amx, m, t.rows * group, a.kv.d, pairs, p, ahead);
    } else if (!int8 && !few) {
        attend_dot(s.dot, m, a.kv.d, pairs, p, ahead);
    }
    return left > 0;
}

// Rows that come to `page` (and are not past it by now), in float32; they move on.
static void attend_rest(const AttendArgs& a, const AttendTile& t, const AttendScratch& s, i64 page) {
    bool loaded = a.kv.kind == KvKind::f32;
    const PagePlace place = place_of(a, t, s.path, page);
    const i64 offset = loaded ? place.at * a.kv.d * a.kv.page_size : 0;
    const float* keys = loaded ? static_cast<const float*>(place.kv->keys) + offset : s.keys;
    const float* values = loaded ? static_cast<const float*>(place.kv->values) + offset : s.values;
    for (i64 first = 0; first < t.rows;) {
        i64 last = first;
        while (last < t.rows && s.rows[last].page == page) move_on(s.rows + last++);
        if (last > first && !loaded) {
            load_page(*place.kv, place.at, s.keys, s.values);
            loaded = true;
        }
        if (last > first) attend_page(a, s, s.range, first, last, seen_of(a, t, page), keys, values);
        first = last > first ? last : first + 1;
    }
}

// Walks the pages that the rows of a tile read in some of their ranges; the last one of each is left in s.range.
static void attend_tile(const AttendArgs& a, const AttendTile& t, const AttendScratch& s, TilePart part) {
    start_tile(a, t, s, part);
    for (;;) {
        i64 page = kNoPage;
        for (i64 r = 0; r < t.rows; ++r) page = least(s.rows[r].page, page);
        if (page >= kNoPage) return;
        begin_ranges(a, t, s, page);
        while (has_dot(a.kv) && attend_pairs(a, t, s, page)) {
        }
        attend_rest(a, t, s, page);
    }
}

#include "attention/plan.hpp"

static const AttentionTable attention_table = {append, select, attend};
