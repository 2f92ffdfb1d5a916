// y = x W^T for many rows of x on matrix tiles (simd/tiles.hpp): both sides in bf16, summed in float32.
//
// Weights are unpacked with their scales and offsets, so sums need nothing done to them before all columns are in.
// Two tiles of 16 x rows by two of 16 weight rows are under way at once: four sums, two and two operands, which
// is all eight registers. What was measured on a Xeon with 48 KB of first-level and 2 MB of second-level cache (docs/log.md):
//   products alone take 3.3 TFLOP/s a core; fed from L1 3.2, with x from L2 2.4, with x from L3 0.87
//   weights  32 rows by at most 256 columns, 16 KB, and as much of x: both stay in L1 (512 columns: neither does)
//   sums     512 by 256 floats, 512 KB, to and from L2 between blocks of columns
//   y        written when all columns are in, up to 1 KB of a row at a time: a core writes 128 bytes of each row at
//            7 GB/s, in sequence at 16
// Included inside the namespace of the instruction set, with MC_HAS_TILES.

constexpr i64 kAmxDepth = 256;              // columns of a block at most
constexpr i64 kAmxPanel = 2 * kTileSide;    // weight rows, and x rows, at once in registers
constexpr i64 kAmxRows = 8 * kAmxPanel;     // weight rows of a task at most: x is read from L3 once for each
constexpr i64 kAmxTasks = 2;                // of a thread at least: fewer, larger ones, as x has to come from L3
constexpr i64 kAmxSums = kAmxPanel * kAmxPanel;

// An operand. Of x: 32 columns of 16 rows. Of weights: row t has columns 2t and 2t + 1 of 16 weight rows.
struct alignas(64) TileWords {
    u16 words[kTileSide][kTileDepth];
};

// How columns are cut: alike, but for the last block; unpack_row wants multiples of 64.
struct AmxBlocks {
    i64 count, columns, steps;
};

MC_INLINE AmxBlocks cut_columns(i64 cols) {
    const i64 count = (cols + kAmxDepth - 1) / kAmxDepth;
    const i64 columns = ((cols + count - 1) / count + 63) / 64 * 64;
    return {(cols + columns - 1) / columns, columns, columns / kTileDepth};
}

MC_INLINE void round_bf16(const float* x, i64 k, i64 end, u16* to) {
    for (i64 at = k; at < end; at += W) {
        store_bf16s(to + at - k, loadn(x + at, end - at < W ? static_cast<int>(end - at) : W));
    }
}

// Columns [k, end) of x rows [row, row + 16), those from `last` on taken as zeros.
static void pack_amx(const LinearArgs& args, i64 row, i64 last, i64 k, i64 end, TileWords* to) {
    for (; k < end; k += kTileDepth, ++to) {
        const i64 stop = k + kTileDepth < end ? k + kTileDepth : end;
        if (row + kTileSide > last || stop - k < kTileDepth) memset(to->words, 0, sizeof to->words);
        for (i64 j = 0; j < kTileSide && row + j < last; ++j) {
            round_bf16(args.x + (row + j) * args.w.cols, k, stop, to->words[j]);
        }
    }
}

// Columns [k, end) of one weight row as bf16, from rows of codes.
template <class F>
static void unpack_bf16(const Matrix& m, i64 r, i64 k, i64 end, u16* to) {
    if constexpr (F::GROUPED) {
        alignas(64) float real[kBlockDepth];
        unpack_row<F>(m, r, k, end, 1.0F, real);
        round_bf16(real, 0, end - k, to);
    } else {
        for (i64 at = k; at < end; at += W) {
            store_bf16s(to + at - k, F::load_some(F::row(m, r), at, end - at < W ? static_cast<int>(end - at) : W));
        }
    }
}

// Columns [k, end) of weight rows [r, r + rows), at most 16, as tiles, from rows; zeros beyond either.
template <class F>
static void unpack_amx_rows(const Matrix& m, i64 r, i64 rows, i64 k, i64 end, TileWords* to) {
    alignas(64) u16 words[kTileSide][kBlockDepth];
    for (; k < end; k += kBlockDepth) {
        const i64 stop = k + kBlockDepth < end ? k + kBlockDepth : end;
        if (rows < kTileSide || stop - k < kBlockDepth) memset(words, 0, sizeof words);
        for (i64 i = 0; i < rows; ++i) unpack_bf16<F>(m, r + i, k, stop, words[i]);
        for (i64 at = 0; at < stop - k; at += kTileDepth, ++to) {
            Words v[kTileSide];
            for (int i = 0; i < kTileSide; ++i) v[i] = load_words(words[i] + at);
            transpose_pairs(v);
            for (int i = 0; i < kTileSide; ++i) store_words(to->words[i], v[i]);
        }
    }
}

// The code numbered INDEX of each lane's four bytes (byte INDEX % 4, lowest bits first), less BIAS. A permutation
// looks at the low 4 bits of each index only; ternary codes repeat in its table, so what is above them does not matter.
template <class F, int BIAS>
MC_INLINE __m512 lane_codes(__m512i codes, int index) {
    constexpr int kParts = static_cast<int>(CodeBytes<F>::kParts);
    if constexpr (kParts == 1) {
        return from_i32(_mm512_srai_epi32(_mm512_sll_epi32(codes, _mm_cvtsi32_si128(24 - 8 * index)), 24)).v;
    } else {
        const __m512i count = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        const __m512i code = _mm512_and_si512(count, _mm512_set1_epi32((1 << (8 / kParts)) - 1));
        const __m512 table = from_i32(_mm512_sub_epi32(code, _mm512_set1_epi32(BIAS))).v;
        const unsigned shift = static_cast<unsigned>(index % 4 * 8 + index / 4 * (8 / kParts));
        return _mm512_permutexvar_ps(_mm512_srli_epi32(codes, shift), table);
    }
}

// Columns [k, end) of panel p as tiles, the last filled up with zeros: lanes are weight rows as they lie.
template <class F, int BIAS>
static void unpack_amx_panel(const Matrix& m, i64 p, i64 k, i64 end, TileWords* to) {
    constexpr i64 kStep = PanelStep<F>::value;
    const i64 groups = m.cols / m.group;
    const u8* codes = static_cast<const u8*>(m.codes) + (p * (m.cols / kStep) + k / kStep) * 64;
    // Words 0, 16, 1, 17, ...
    const __m512i count = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i order = _mm512_or_si512(count, _mm512_slli_epi32(_mm512_add_epi32(count, _mm512_set1_epi32(16)), 16));
    u16* row = to->words[0];
    while (k < end) {
        const i64 g = k / m.group, at = p * groups + g;
        const i64 stop = (g + 1) * m.group < end ? (g + 1) * m.group : end;
        const __m512 scale = panel_lanes(scales_of(m), at, 0).v;
        const __m512 offset = m.offsets != nullptr ? panel_lanes(offsets_of(m), at, 0).v : zero().v;
        for (; k < stop; k += kStep, codes += 64) {
            const __m512i raw = _mm512_loadu_si512(codes);
            MC_UNROLL
            for (int i = 0; i < kStep; i += 2, row += kTileDepth) {
                const __m512 even = _mm512_fmadd_ps(lane_codes<F, BIAS>(raw, i), scale, offset);
                const __m512 odd = _mm512_fmadd_ps(lane_codes<F, BIAS>(raw, i + 1), scale, offset);
                const __m512i halves = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(odd, even));
                _mm512_store_si512(row, _mm512_permutexvar_epi16(order, halves));
            }
        }
    }
    if (m.cols % kTileDepth != 0 && end == m.cols) memset(row, 0, kTileSide / 2 * 64);  // half a tile
}

// As above, from the layout that the matrix has; r is a multiple of 16.
template <class F>
static void unpack_amx(const Matrix& m, i64 r, i64 rows, i64 k, i64 end, TileWords* to) {
    if constexpr (F::GROUPED) {
        if (m.panels && m.offsets != nullptr) return unpack_amx_panel<F, 0>(m, r / kPanelRows, k, end, to);
        if (m.panels) return unpack_amx_panel<F, CodeBytes<F>::kBias>(m, r / kPanelRows, k, end, to);
    }
    unpack_amx_rows<F>(m, r, rows, k, end, to);
}

// XS by WS tiles of sums, in c (2, 2, 16, 16); operands of the second tile lie `apart` tiles after the first's.
template <int XS, int WS>
static void sum_amx(Tiles& t, const TileWords* x, const TileWords* w, i64 apart, i64 steps, float* c, bool first) {
    constexpr i64 kSize = kTileSide * kTileSide;
    if (first) {
        t.zero<0>();
        if constexpr (WS > 1) t.zero<1>();
        if constexpr (XS > 1) t.zero<2>();
        if constexpr (XS > 1 && WS > 1) t.zero<3>();
    } else {
        t.load<0>(c, 64);
        if constexpr (WS > 1) t.load<1>(c + kSize, 64);
        if constexpr (XS > 1) t.load<2>(c + 2 * kSize, 64);
        if constexpr (XS > 1 && WS > 1) t.load<3>(c + 3 * kSize, 64);
    }
    for (i64 s = 0; s < steps; ++s, ++x, ++w) {
        t.load<6>(w, 64);
        t.load<4>(x, 64);
        t.dot_bf16<0, 4, 6>();
        if constexpr (WS > 1) {
            t.load<7>(w + apart, 64);
            t.dot_bf16<1, 4, 7>();
        }
        if constexpr (XS > 1) {
            t.load<5>(x + apart, 64);
            t.dot_bf16<2, 5, 6>();
        }
        if constexpr (XS > 1 && WS > 1) t.dot_bf16<3, 5, 7>();
    }
    t.store<0>(c, 64);
    if constexpr (WS > 1) t.store<1>(c + kSize, 64);
    if constexpr (XS > 1) t.store<2>(c + 2 * kSize, 64);
    if constexpr (XS > 1 && WS > 1) t.store<3>(c + 3 * kSize, 64);
}

static void choose_sum_amx(Tiles& t, const TileWords* x, i64 rows, const TileWords* w, i64 columns, i64 apart,
                           i64 steps, float* c, bool first) {
    if (rows > kTileSide && columns > kTileSide) return sum_amx<2, 2>(t, x, w, apart, steps, c, first);
    if (rows > kTileSide) return sum_amx<2, 1>(t, x, w, apart, steps, c, first);
    if (columns > kTileSide) return sum_amx<1, 2>(t, x, w, apart, steps, c, first);
    sum_amx<1, 1>(t, x, w, apart, steps, c, first);
}

// Sums (task.rows / 32, count / 32, 2, 2, 16, 16) of x rows from `first` on, to y.
static void finish_amx(const ProductTask& task, i64 first, i64 count, const float* sums) {
    const i64 across = (count + kAmxPanel - 1) / kAmxPanel;
    for (i64 a = 0; a < count; ++a) {
        for (i64 b = 0; b < task.rows; b += kTileSide) {
            const i64 tile = (b / kAmxPanel * across + a / kAmxPanel) * 4 + a % kAmxPanel / kTileSide * 2 +
                             b % kAmxPanel / kTileSide;
            const float* c = sums + (tile * kTileSide + a % kTileSide) * kTileSide;
            finish_lanes(*task.args, first + a, task.r + b, load(c));
        }
    }
}

// Weight rows [r, r + rows) by `count` packed x rows; scratch: unpacked weights, then sums.
template <class F>
static void multiply_amx(Tiles& t, const ProductTask& task, i64 first, i64 count, const AmxBlocks& blocks,
                         const TileWords* packed, TileWords* weights) {
    const Matrix& m = task.args->w;
    const i64 panels = (count + kTileSide - 1) / kTileSide, steps = blocks.steps;
    float* sums = reinterpret_cast<float*>(weights + 2 * steps);
    for (i64 block = 0; block < blocks.count; ++block) {
        const i64 k = block * blocks.columns;
        const i64 end = k + blocks.columns < m.cols ? k + blocks.columns : m.cols;
        const i64 used = (end - k + kTileDepth - 1) / kTileDepth;
        float* c = sums;
        for (i64 i = 0; i < task.rows; i += kAmxPanel) {
            const i64 columns = task.rows - i;
            for (i64 half = 0; half < kAmxPanel && half < columns; half += kTileSide) {
                const i64 some = columns - half < kTileSide ? columns - half : kTileSide;
                unpack_amx<F>(m, task.r + i + half, some, k, end, weights + half / kTileSide * steps);
            }
            for (i64 j = 0; j < count; j += kAmxPanel, c += kAmxSums) {
                const TileWords* x = packed + (block * panels + j / kTileSide) * steps;
                choose_sum_amx(t, x, count - j, weights, columns, steps, used, c, block == 0);
            }
        }
    }
    finish_amx(task, first, count, sums);
}

// x is packed once for all products.
template <class F>
static void linear_amx(Pool& pool, const SharedProducts& all) {
    const LinearArgs& args = *all.args;
    const AmxBlocks blocks = cut_columns(args.w.cols);
    const i64 most = args.n < kRowsAtOnce ? args.n : kRowsAtOnce;
    const i64 rows = rows_of_task(pool, all, kAmxRows, kAmxTasks);
    const i64 tiles = (most + kAmxPanel - 1) / kAmxPanel * (rows / kAmxPanel);
    pool.reserve_shared((most + kTileSide - 1) / kTileSide * blocks.count * blocks.steps *
                        static_cast<i64>(sizeof(TileWords)));
    pool.reserve(2 * blocks.steps * static_cast<i64>(sizeof(TileWords)) +
                 tiles * kAmxSums * static_cast<i64>(sizeof(float)));
    TileWords* packed = static_cast<TileWords*>(pool.shared());
    for (i64 first = 0; first < args.n; first += kRowsAtOnce) {
        const i64 count = args.n - first < kRowsAtOnce ? args.n - first : kRowsAtOnce;
        const i64 panels = (count + kTileSide - 1) / kTileSide;
        auto pack = [&](i64 begin, i64 end, int) {
            for (i64 p = begin; p < end; ++p) {
                const i64 panel = p / blocks.count, k = p % blocks.count * blocks.columns;
                const i64 stop = k + blocks.columns < args.w.cols ? k + blocks.columns : args.w.cols;
                pack_amx(args, first + panel * kTileSide, first + count, k, stop,
                         packed + (p % blocks.count * panels + panel) * blocks.steps);
            }
        };
        parallel(pool, panels * blocks.count, blocks.count, pack);
        auto multiply = [&](i64 begin, i64 end, int worker) {
            Tiles t;
            TileWords* scratch = static_cast<TileWords*>(pool.scratch(worker));
            for (i64 i = begin; i < end; ++i) {
                multiply_amx<F>(t, find_task(all, rows, i), first, count, blocks, packed, scratch);
            }
        };
        parallel(pool, count_tasks(all, rows), 1, multiply);
    }
}

template <>
struct Multiply<Method::tiles> {
    template <class F>
    static void run(Pool& pool, const SharedProducts& all) {
        linear_amx<F>(pool, all);
    }
};
