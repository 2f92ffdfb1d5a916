// How a row's softmax is put together. Included by attention/attention.hpp.
//
// A row reads its list of pages in ranges: each range is a softmax of its own, and these are joined in order. Where a range
// ends goes by the length of the row's list alone. So a row has the same bits with any rows beside it, in any chunk
// and with any number of threads, which share the ranges of a tile among them.

static constexpr i64 kRangePages = 8;   // fewer pages are not worth a thread
static constexpr i64 kMostRanges = 32;  // of a row: what is kept of them takes memory

// Weights are relative to a score that no later one exceeds by more than this: to raise it takes as long as half a page,
// and floats are as exact far from 1.
static constexpr float kSlack = 16.0F;

// A softmax under way of some queries: sums (m, d) of weighted values, top (m), the score that weights are relative to, and
// total (m) of weights.
struct Partial {
    float* sums;
    float* top;
    float* total;
};

MC_INLINE i64 partial_floats(i64 m, i64 d) { return round_up(m * (d + 2), W); }
MC_INLINE Partial partial_at(float* base, i64 m, i64 d) { return {base, base + m * d, base + m * (d + 1)}; }

// Pages of each range, but for the last one, of a row that reads `count` pages.
MC_INLINE i64 range_of(i64 count) {
    i64 pages = kRangePages;
    while (pages * kMostRanges < count) pages *= 2;
    return pages;
}

MC_INLINE i64 ranges_of(i64 count) {
    const i64 pages = range_of(count);
    return (count + pages - 1) / pages;
}

// Most ranges of a row that reads `count` pages or fewer.
MC_INLINE i64 most_ranges(i64 count) { return least(kMostRanges, (count + kRangePages - 1) / kRangePages); }

// Of queries [first, first + m): nothing read yet.
static void clear(const Partial& p, i64 first, i64 m, i64 d) {
    memset(p.sums + first * d, 0, static_cast<size_t>(m * d) * sizeof(float));
    for (i64 i = first; i < first + m; ++i) {
        p.top[i] = -INFINITY;
        p.total[i] = 0.0F;
    }
}

static void copy(const Partial& to, const Partial& from, i64 first, i64 m, i64 d) {
    const size_t size = static_cast<size_t>(m) * sizeof(float);
    memcpy(to.sums + first * d, from.sums + first * d, size * static_cast<size_t>(d));
    memcpy(to.top + first, from.top + first, size);
    memcpy(to.total + first, from.total + first, size);
}

// Adds the softmax of `next` to that of `p`, for queries [first, first + m).
static void join(const Partial& p, const Partial& next, i64 first, i64 m, i64 d) {
    for (i64 i = first; i < first + m; i += W) {
        const int n = static_cast<int>(least(first + m - i, W));
        const V top = max(load_some(p.top + i, n), load_some(next.top + i, n));
        const V base = max(top, set1(-3e38F));  // nothing read by either: no NaN
        const V ours = exp(sub(load_some(p.top + i, n), base));
        const V theirs = exp(sub(load_some(next.top + i, n), base));
        const V total = mul(load_some(next.total + i, n), theirs);
        store_some(p.total + i, fma(load_some(p.total + i, n), ours, total), n);
        store_some(p.top + i, top, n);
        float our[W], their[W];
        store(our, ours);
        store(their, theirs);
        for (int j = 0; j < n; ++j) {
            float* sums = p.sums + (i + j) * d;
            const float* more = next.sums + (i + j) * d;
            const V left = set1(our[j]), right = set1(their[j]);
            each_vector(d, [&](i64 e, int count) {
                const V part = mul(load_some(more + e, count), right);
                store_some(sums + e, fma(load_some(sums + e, count), left, part), count);
            });
        }
    }
}
