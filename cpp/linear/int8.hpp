// y = x W^T with x in 8 bits, a choice (activations = "int8"): many rows of x, weights in panels.
//
// vpdpbusd does twice the products of vpdpwssd, vpmaddubsw twice those of vpmaddwd. Each unit of x (16 to 128 columns of one
// group, a block and a piece of linear/quantise.hpp) is rounded to
// signed bytes with a scale of its own; codes are exact, as unsigned bytes, and their shift starts the sums. Two vectors of weight
// rows at a time are unpacked to bytes over the whole depth, and stay in the second cache level while all rows of x pass by,
// kInt8Rows at once with their totals in registers. Included inside the namespace of the instruction set, with
// MC_HAS_PANELS only.

constexpr i64 kInt8Blocks = 96 / kInt8Lanes;  // of kInt8Lanes weight rows, unpacked at a time

// kInt8Lanes weight rows as unsigned bytes: dword t of all rows holds columns 4 t to 4 t + 3; then scales and offsets of groups.
struct Int8Panels {
    u8* codes;      // (cols / 4, kInt8Lanes, 4)
    float* scales;  // (groups, kInt8Lanes)
    float* offsets;
};

MC_INLINE i64 int8_panel_floats(const Matrix& m) { return kInt8Lanes * (m.cols / 4 + 2 * (m.cols / m.group)); }

MC_INLINE Int8Panels int8_panels(float* base, const Matrix& m) {
    float* scales = base + kInt8Lanes * (m.cols / 4);
    return {reinterpret_cast<u8*>(base), scales, scales + kInt8Lanes * (m.cols / m.group)};
}

// 16 columns of codes in two planes to their places, and on.
template <class F>
struct PlanesToBytes {
    static constexpr i64 kSixteen = 0;
    u8** four;

    template <int H>
    MC_INLINE void run(const PlanesToBytes& to, const u8* unit, const u8*) {
        PanelBytes w[4];
        PanelPlanes<F>::template get<H>(w, unit);
        for (int t = 0; t < 4; ++t, *to.four += 4 * kInt8Lanes) store_panel(*to.four, w[t]);
    }
};

// Weight rows [r, r + W), W dividing r, to lanes from `lane` on.
template <class F>
static void unpack_int8_panel(const Matrix& m, i64 r, i64 lane, const Int8Panels& to) {
    const i64 groups = m.cols / m.group, p = r / kPanelRows, row = r % kPanelRows;
    const u8* codes = static_cast<const u8*>(m.codes) + p * panel_bytes<F>(m.cols) + 4 * row;
    u8* four = to.codes + 4 * lane;
    if constexpr (is_planes<F>) {
        const u8* none = nullptr;
        each_sixteen<F, false>(m.cols / 16, false, codes, none, PlanesToBytes<F>{&four});
    } else {
        for (i64 c = 0; c < m.cols / PanelStep<F>::value; ++c) {
            const PanelBytes raw = load_panel(codes + c * 64);
            MC_UNROLL
            for (int part = 0; part < CodeBytes<F>::kParts; ++part, four += 4 * kInt8Lanes) {
                store_panel(four, part_of_codes<F, XForm::high>(raw, part));
            }
        }
    }
    for (i64 g = 0; g < groups; ++g) {
        store(to.scales + g * kInt8Lanes + lane, panel_lanes(scales_of(m), p * groups + g, row));
        if (m.offsets != nullptr) store(to.offsets + g * kInt8Lanes + lane, panel_lanes(offsets_of(m), p * groups + g, row));
    }
}

// x rows [first, first + ROWS) by COLUMNS vectors of weight rows from r on.
template <class F, int ROWS, int COLUMNS>
static void tile_int8(const LinearArgs& args, const PanelX& x, i64 first, i64 r, const Int8Panels& w) {
    const Matrix& m = args.w;
    const i64 unit = panel_unit(m), per_group = m.group / unit;
    V total[ROWS][COLUMNS];
    MC_UNROLL
    for (int a = 0; a < ROWS; ++a) {
        MC_UNROLL
        for (int b = 0; b < COLUMNS; ++b) total[a][b] = zero();
    }
    for (i64 u = 0; u < m.cols / unit; ++u) {
        Ints sum[ROWS][COLUMNS];
        MC_UNROLL
        for (int a = 0; a < ROWS; ++a) {
            MC_UNROLL
            for (int b = 0; b < COLUMNS; ++b) sum[a][b] = all_ints(x.shifts(first + a)[u]);
        }
        const u8* row = x.rows + first * x.pitch + u * unit;
        dot_int8_unit<F, ROWS, COLUMNS>(row, x.pitch, unit, w.codes + u * unit * kInt8Lanes, sum);
        const float* scales = w.scales + u / per_group * kInt8Lanes;
        const float* offsets = w.offsets + u / per_group * kInt8Lanes;
        MC_UNROLL
        for (int a = 0; a < ROWS; ++a) {
            const V scale = set1(x.scales(first + a)[u]);
            MC_UNROLL
            for (int b = 0; b < COLUMNS; ++b) {
                V part = fma(to_floats(sum[a][b]), load(scales + b * W), zero());
                if (m.offsets != nullptr) part = fma(set1(x.sums(first + a)[u]), load(offsets + b * W), part);
                total[a][b] = fma(part, scale, total[a][b]);
            }
        }
    }
    for (int a = 0; a < ROWS; ++a) {
        for (int b = 0; b < COLUMNS; ++b) finish_lanes(args, first + a, r + b * W, total[a][b]);
    }
}

template <class F, int COLUMNS>
static void tiles_int8(const LinearArgs& args, const PanelX& x, i64 count, i64 r, const Int8Panels& w, i64 j) {
    if (count - j > kInt8Rows) count = j + kInt8Rows;
    if (count - j == kInt8Rows) return tile_int8<F, kInt8Rows, COLUMNS>(args, x, j, r, w);
    for (; count - j >= 2; j += 2) tile_int8<F, 2, COLUMNS>(args, x, j, r, w);
    if (count - j == 1) tile_int8<F, 1, COLUMNS>(args, x, j, r, w);
}

// Weight rows [r, r + rows), kInt8Blocks * kInt8Lanes at most, by all x rows.
template <class F>
static void multiply_int8(const LinearArgs& args, const PanelX& x, i64 r, i64 rows, float* scratch) {
    const i64 size = int8_panel_floats(args.w);
    for (i64 i = 0; i < rows; i += W) {
        const Int8Panels to = int8_panels(scratch + i / kInt8Lanes * size, args.w);
        unpack_int8_panel<F>(args.w, r + i, i % kInt8Lanes, to);
    }
    for (i64 j = 0; j < args.n; j += kInt8Rows) {
        for (i64 i = 0; i < rows; i += kInt8Lanes) {
            const Int8Panels w = int8_panels(scratch + i / kInt8Lanes * size, args.w);
            if (rows - i > W) {
                tiles_int8<F, kInt8Vectors>(args, x, args.n, r + i, w, j);
            } else {
                tiles_int8<F, 1>(args, x, args.n, r + i, w, j);
            }
        }
    }
}

// All x rows are quantised already.
template <class F>
static void many_panel_rows(Pool& pool, const SharedProducts& all, const PanelX& x) {
    constexpr i64 kBlock = kInt8Blocks * kInt8Lanes;
    pool.reserve(kInt8Blocks * int8_panel_floats(all.args->w) * static_cast<i64>(sizeof(float)));
    auto body = [&](i64 begin, i64 end, int worker) {
        for (i64 t = begin; t < end; ++t) {
            const ProductTask task = find_task(all, kBlock, t);
            multiply_int8<F>(*task.args, x, task.r, task.rows, static_cast<float*>(pool.scratch(worker)));
        }
    };
    parallel(pool, count_tasks(all, kBlock), 1, body);
}
