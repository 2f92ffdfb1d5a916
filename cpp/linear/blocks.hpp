// y = x W^T for many rows of x, by units that multiply narrower numbers than float32 does.
//
// Columns are taken kBlockDepth at a time. For each depth block x is packed once, in tiles of a few rows, for all
// products of the same x; blocks of weight rows are unpacked into panels, which stay in the first cache level while all
// rows of x pass by. A kernel K says how tiles and panels look and multiplies one by the other: XTile, Panel, kRows
// (of x in a tile), kPanelRows (of W in a panel), pack, unpack and multiply. Included inside the
// namespace of the instruction set.

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

// Columns [k, end) of a row of x as 16-bit integers, 16 at a time to place(column, q); returns their scale, and with
// `sums` the sums of the integers of segments.
template <class Place>
MC_INLINE float quantise_depth(const float* x, i64 k, i64 end, const Segments& s, float* sums, const Place& place) {
    const float scale = int16_scale(x + k, end - k), inverse = inverse_scale(scale);
    i64 from = 0;
    for (int segment = 0; segment < s.count; from = s.stop[segment++]) {
        const auto shifted = [&](i64 at, const Ints* q) { place(from + at, q); };
        const float sum = quantise_x(x + k + from, s.stop[segment] - from, inverse, shifted);
        if (sums != nullptr) sums[segment] = sum;
    }
    return scale;
}

// Scales of x rows [row, row + rows) of a tile, 0 from `last` on, and their sums; pack_row(j, x, sums) packs row j.
template <class XTile, class PackRow>
MC_INLINE void pack_scaled(const LinearArgs& args, i64 row, i64 rows, i64 last, const Segments& s, XTile* to,
                           const PackRow& pack_row) {
    for (i64 j = 0; j < rows; ++j) {
        float sums[kMostSegments] = {};
        float scale = 0.0F;
        if (row + j < last) {
            scale = pack_row(j, args.x + (row + j) * args.w.cols, args.w.offsets != nullptr ? sums : nullptr);
        }
        to->scale[j] = scale;
        for (int segment = 0; segment < s.count; ++segment) to->sums[segment][j] = sums[segment];
    }
}

// What becomes of a tile: sums of the depths so far, in c, and at the last depth y. x rows [row, row + rows),
// weight rows [column, column + columns).
struct BlockOutput {
    const LinearArgs* args;
    float* c;  // rows kBlockRows apart
    bool first, last;
    i64 row, rows, column, columns;
};

// Where a tile of ROWS x COLUMNS goes is not in the first cache level, and not in order.
template <int ROWS, int COLUMNS>
MC_INLINE void prefetch_output(const BlockOutput& out) {
    MC_UNROLL
    for (int a = 0; a < ROWS; ++a) {
        if (a >= out.rows) return;
        const float* y = out.args->y + (out.row + a) * out.args->w.rows + out.column;
        const float* to = out.last ? y : out.c + a * kBlockRows;
        MC_UNROLL
        for (int b = 0; b < COLUMNS; b += 16) {
            if (b < out.columns) prefetch(to + b);
        }
    }
}

template <bool WHOLE, int ROWS, int COLUMNS>
MC_INLINE void write_y(const BlockOutput& out, V (*total)[COLUMNS]) {
    const LinearArgs& args = *out.args;
    MC_UNROLL
    for (int b = 0; b < COLUMNS; ++b) {
        const i64 left = out.columns - W * b, column = out.column + W * b;
        if (left <= 0) break;
        const int n = left < W ? static_cast<int>(left) : W;
        const auto get = [n](const float* p) { return WHOLE ? load(p) : loadn(p, n); };
        const V bias = args.bias != nullptr ? get(args.bias + column) : zero();
        MC_UNROLL
        for (int a = 0; a < ROWS; ++a) {
            if (a >= out.rows) break;
            float* y = args.y + (out.row + a) * args.w.rows + column;
            V value = args.bias != nullptr ? add(total[a][b], bias) : total[a][b];
            if (args.add) value = fma(set1(args.scale), value, get(y));
            if (WHOLE) {
                store(y, value);
            } else {
                storen(y, value, n);
            }
        }
    }
}

template <int ROWS, int COLUMNS>
MC_INLINE void store_tile(const BlockOutput& out, V (*total)[COLUMNS]) {
    if (!out.last) {
        MC_UNROLL
        for (int a = 0; a < ROWS; ++a) {
            MC_UNROLL
            for (int b = 0; b < COLUMNS; ++b) store(out.c + a * kBlockRows + W * b, total[a][b]);
        }
    } else if (out.columns >= W * COLUMNS) {
        write_y<true, ROWS, COLUMNS>(out, total);
    } else {
        write_y<false, ROWS, COLUMNS>(out, total);
    }
}

// Parts of a depth block: times the scales of x, plus the sums of earlier depths.
template <int ROWS, int COLUMNS, class XTile>
MC_INLINE void finish_tile(const XTile& x, const BlockOutput& out, V (*total)[COLUMNS]) {
    MC_UNROLL
    for (int a = 0; a < ROWS; ++a) {
        const V scale = set1(x.scale[a]);
        MC_UNROLL
        for (int b = 0; b < COLUMNS; ++b) {
            const V before = out.first ? zero() : load(out.c + a * kBlockRows + W * b);
            total[a][b] = fma(total[a][b], scale, before);
        }
    }
    store_tile<ROWS, COLUMNS>(out, total);
}

// Scales and offsets of `count` weight rows from r on: the segments' values of row i to scales[segment * pitch + i].
MC_INLINE void copy_groups(const Matrix& m, i64 r, i64 count, const Segments& s, float* scales, float* offsets,
                           i64 pitch) {
    const i64 groups = m.cols / m.group;
    for (i64 i = 0; i < count; ++i) {
        for (int g = 0; g < s.count; ++g) {
            const i64 at = (r + i) * groups + s.group[g];
            scales[g * pitch + i] = float_at(scales_of(m), at);
            if (m.offsets != nullptr) offsets[g * pitch + i] = float_at(offsets_of(m), at);
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
