// y = x W^T for many rows of x, by units that multiply narrower numbers than float32 does.
//
// Columns are taken kBlockDepth at a time. For each depth block x is packed once, in tiles of a few rows, for all
// products of the same x; blocks of weight rows are unpacked into panels, which stay in the first cache level while all
// rows of x pass by. A kernel K says how tiles and panels look and multiplies one by the other: XTile, Panel, kRows
// (of x in a tile), kPanelRows (of W in a panel), pack, unpack and multiply. Included inside the
// namespace of the instruction set.

constexpr i64 kBlockDepth = 128;  // columns of W at once
constexpr i64 kBlockRows = 96;    // weight rows of a block at most
constexpr int kMostSegments = 8;

// The pieces of a depth block that lie in one group each; piece s ends before column stop[s] of the block.
struct Segments {
    int count = 0;
    i64 group[kMostSegments];
    i64 stop[kMostSegments];
};

MC_INLINE i64 depth_end(const Matrix& m, i64 k) { return k + kBlockDepth < m.cols ? k + kBlockDepth : m.cols; }

MC_INLINE Segments find_segments(const Matrix& m, i64 k) {
    Segments s;
    const i64 end = depth_end(m, k);
    const i64 group = m.group > 0 ? m.group : m.cols;
    for (i64 at = k; at < end; ++s.count) {
        s.group[s.count] = at / group;
        at = (at / group + 1) * group < end ? (at / group + 1) * group : end;
        s.stop[s.count] = at - k;
    }
    return s;
}

// What becomes of a tile: sums of the depths so far, in c, and at the last depth y. x rows [row, row + rows),
// weight rows [column, column + columns).
struct BlockOutput {
    const LinearArgs* args;
    float* c;  // rows kBlockRows apart
    bool first, last;
    i64 row, rows, column, columns;
};

// Where row a of a tile goes is not in the first cache level, and not in order.
template <int COLUMNS>
MC_INLINE void prefetch_output(const BlockOutput& out, i64 a) {
    if (a >= out.rows) return;
    const float* y = out.args->y + (out.row + a) * out.args->w.rows + out.column;
    const float* to = out.last ? y : out.c + a * kBlockRows;
    for (int b = 0; b < COLUMNS && b < out.columns; b += 16) prefetch(to + b);
}

// Scales and offsets of `count` weight rows from r on: the segments' values of row i to scales[segment * pitch + i].
MC_INLINE void copy_groups(const Matrix& m, i64 r, i64 count, const Segments& s, float* scales, float* offsets,
                           i64 pitch) {
    const i64 groups = m.cols / m.group;
    for (i64 i = 0; i < count; ++i) {
        for (int g = 0; g < s.count; ++g) {
            const i64 at = (r + i) * groups + s.group[g];
            scales[g * pitch + i] = float_at(m.scales, m.half_scales, at);
            if (m.offsets != nullptr) offsets[g * pitch + i] = float_at(m.offsets, m.half_offsets, at);
        }
    }
}

// Weight rows [r, r + rows) by `count` packed x rows; scratch: unpacked weights, then c.
template <class F, class K>
static void multiply_block(const LinearArgs& args, i64 r, i64 rows, i64 first, i64 count,
                           const typename K::XTile* packed, typename K::Panel* panels) {
    const Matrix& m = args.w;
    const i64 depths = (m.cols + kBlockDepth - 1) / kBlockDepth, tiles = (count + K::kRows - 1) / K::kRows;
    float* c = reinterpret_cast<float*>(panels + kBlockRows / K::kPanelRows);
    for (i64 depth = 0; depth < depths; ++depth) {
        const Segments s = find_segments(m, depth * kBlockDepth);
        for (i64 i = 0; i < rows; i += K::kPanelRows) {
            const i64 some = rows - i < K::kPanelRows ? rows - i : K::kPanelRows;
            K::template unpack<F>(m, r + i, some, depth * kBlockDepth, s, panels + i / K::kPanelRows);
        }
        for (i64 j = 0; j < tiles; ++j) {
            const i64 row = j * K::kRows;
            for (i64 i = 0; i < rows; i += K::kPanelRows) {
                const BlockOutput out = {&args,       c + row * kBlockRows + i, depth == 0, depth + 1 == depths,
                                         first + row, count - row,              r + i,      rows - i};
                K::multiply(s, packed[depth * tiles + j], panels[i / K::kPanelRows], out);
            }
        }
    }
}

// Some of the weight rows of one product.
struct ProductTask {
    const LinearArgs* args;
    i64 r, rows;
};

MC_INLINE i64 count_tasks(const SharedProducts& all, i64 rows) {
    i64 tasks = 0;
    for (i64 i = 0; i < all.count; ++i) tasks += (all.args[i].w.rows + rows - 1) / rows;
    return tasks;
}

MC_INLINE ProductTask find_task(const SharedProducts& all, i64 rows, i64 task) {
    const LinearArgs* args = all.args;
    for (i64 own; task >= (own = (args->w.rows + rows - 1) / rows); ++args) task -= own;
    const i64 r = task * rows, left = args->w.rows - r;
    return {args, r, left < rows ? left : rows};
}

// Weight rows of a task: fewer than `most` where there are too few for every thread to get some.
static i64 rows_of_task(const Pool& pool, const SharedProducts& all, i64 most) {
    constexpr i64 kLeast = 32;
    i64 total = 0;
    for (i64 i = 0; i < all.count; ++i) total += all.args[i].w.rows;
    const i64 share = total / (8 * pool.threads()) / kLeast * kLeast;
    return share < kLeast ? kLeast : share < most ? share : most;
}

// Products of x rows [first, first + count), which are packed already, in tasks of `rows` weight rows.
template <class F, class K>
static void multiply_shared(Pool& pool, const SharedProducts& all, i64 rows, i64 first, i64 count,
                            const typename K::XTile* packed) {
    auto multiply = [&](i64 begin, i64 end, int worker) {
        typename K::Panel* scratch = static_cast<typename K::Panel*>(pool.scratch(worker));
        for (i64 t = begin; t < end; ++t) {
            const ProductTask task = find_task(all, rows, t);
            multiply_block<F, K>(*task.args, task.r, task.rows, first, count, packed, scratch);
        }
    };
    parallel(pool, count_tasks(all, rows), 1, multiply);
}

// x is packed once for all products.
template <class F, class K>
static void linear_blocks(Pool& pool, const SharedProducts& all) {
    using XTile = typename K::XTile;
    const LinearArgs& args = *all.args;
    const i64 most = ((args.n < kRowsAtOnce ? args.n : kRowsAtOnce) + K::kRows - 1) / K::kRows;
    const i64 depths = (args.w.cols + kBlockDepth - 1) / kBlockDepth;
    const i64 rows = rows_of_task(pool, all, kBlockRows);
    pool.reserve_shared(most * depths * static_cast<i64>(sizeof(XTile)));
    pool.reserve(kBlockRows / K::kPanelRows * static_cast<i64>(sizeof(typename K::Panel)) +
                 most * K::kRows * kBlockRows * static_cast<i64>(sizeof(float)));
    XTile* packed = static_cast<XTile*>(pool.shared());
    for (i64 first = 0; first < args.n; first += kRowsAtOnce) {
        const i64 count = args.n - first < kRowsAtOnce ? args.n - first : kRowsAtOnce;
        const i64 tiles = (count + K::kRows - 1) / K::kRows;
        auto pack = [&](i64 begin, i64 end, int) {
            for (i64 p = begin; p < end; ++p) {
                const i64 j = p / depths, depth = p % depths;
                K::pack(args, first + j * K::kRows, first + count, depth * kBlockDepth, packed + depth * tiles + j);
            }
        };
        parallel(pool, tiles * depths, depths, pack);
        multiply_shared<F, K>(pool, all, rows, first, count, packed);
    }
}

// BlocksFor<F>, which a kernel's file supplies: the kernel for format F. This one leaves it to float32.
struct ByFloats {
    struct Kernel {
        static constexpr i64 kRows = 0;
    };
};
