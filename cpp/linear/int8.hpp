// y = x W^T with x in 8 bits, a choice (activations = "int8"): many rows of x, weights in panels.
//
// vpdpbusd does twice the products of vpdpwssd. Each unit of x (16 to 128 columns of one group, a block and a piece
// of linear/quantise.hpp) is rounded to
// signed bytes with a scale of its own; codes are exact, as unsigned bytes, and their shift starts the sums. Two panels at a
// time are unpacked to bytes over the whole depth, and stay in the second cache level while all rows of x pass by,
// kInt8Rows at once with their totals in registers. Included inside the namespace of the instruction set, with
// MC_HAS_VNNI only.

constexpr int kInt8Rows = 6;       // x rows at once
constexpr i64 kInt8Panels = 2;     // panels side by side in registers
constexpr i64 kInt8Blocks = 3;     // of those, unpacked at a time

// Two panels as unsigned bytes: dword t of all rows holds columns 4 t to 4 t + 3; then scales and offsets of groups.
struct Int8Panels {
    u8* codes;      // (cols / 4, 32, 4)
    float* scales;  // (groups, 32)
    float* offsets;
};

MC_INLINE i64 int8_panel_floats(const Matrix& m) {
    return kInt8Panels * kPanelRows * (m.cols / 4 + 2 * (m.cols / m.group));
}

MC_INLINE Int8Panels int8_panels(float* base, const Matrix& m) {
    constexpr i64 kLanes = kInt8Panels * kPanelRows;
    float* scales = base + kLanes * (m.cols / 4);
    return {reinterpret_cast<u8*>(base), scales, scales + kLanes * (m.cols / m.group)};
}

// 16 columns of codes in two planes to their places, and on.
template <class F>
struct PlanesToBytes {
    u8** four;

    template <int H>
    MC_INLINE void run(const PlanesToBytes& to, const u8* unit, const u8*) {
        __m512i w[4];
        PanelPlanes<F>::template get<H>(w, unit);
        for (int t = 0; t < 4; ++t, *to.four += 4 * kInt8Panels * kPanelRows) _mm512_store_si512(*to.four, w[t]);
    }
};

// Panel p to lanes [16 half, 16 half + 16).
template <class F>
static void unpack_int8_panel(const Matrix& m, i64 p, i64 half, const Int8Panels& to) {
    constexpr i64 kLanes = kInt8Panels * kPanelRows;
    const i64 groups = m.cols / m.group;
    const u8* codes = static_cast<const u8*>(m.codes) + p * panel_bytes<F>(m.cols);
    u8* four = to.codes + half * kPanelRows * 4;  // columns of the panel's rows
    if constexpr (is_planes<F>) {
        const u8* none = nullptr;
        each_sixteen<F, false>(m.cols / 16, false, codes, none, PlanesToBytes<F>{&four});
    } else {
        constexpr i64 kParts = Bytes<F>::kParts;
        for (i64 c = 0; c < m.cols / PanelStep<F>::value; ++c) {
            __m512i w[kParts];
            Bytes<F>::split(w, _mm512_loadu_si512(codes + c * 64));
            for (i64 part = 0; part < kParts; ++part, four += 4 * kLanes) _mm512_store_si512(four, w[part]);
        }
    }
    for (i64 g = 0; g < groups; ++g) {
        const i64 at = g * kLanes + half * kPanelRows;
        _mm512_store_ps(to.scales + at, panel_lanes(scales_of(m), p * groups + g, 0).v);
        if (m.offsets != nullptr) {
            _mm512_store_ps(to.offsets + at, panel_lanes(offsets_of(m), p * groups + g, 0).v);
        }
    }
}

// Columns [k, k + unit) of ROWS rows of x, by COLUMNS panels.
template <int ROWS, int COLUMNS>
MC_INLINE void dot_int8_unit(const PanelX& x, i64 first, i64 u, i64 unit, const Int8Panels& w, __m512i (*sum)[COLUMNS]) {
    constexpr i64 kLanes = kInt8Panels * kPanelRows;
    MC_UNROLL
    for (int a = 0; a < ROWS; ++a) {
        MC_UNROLL
        for (int b = 0; b < COLUMNS; ++b) sum[a][b] = _mm512_set1_epi32(x.shifts(first + a)[u]);
    }
    const u8* row = x.rows + first * x.pitch;
    const u8* codes = w.codes + u * unit * kLanes;
    for (i64 k = u * unit; k < (u + 1) * unit; k += 4, codes += 4 * kLanes) {
        __m512i right[COLUMNS];
        MC_UNROLL
        for (int b = 0; b < COLUMNS; ++b) right[b] = _mm512_load_si512(codes + b * 64);
        MC_UNROLL
        for (int a = 0; a < ROWS; ++a) {
            i32 word;
            memcpy(&word, row + a * x.pitch + k, sizeof word);
            const __m512i left = _mm512_set1_epi32(word);
            MC_UNROLL
            for (int b = 0; b < COLUMNS; ++b) sum[a][b] = add_byte_products(sum[a][b], right[b], left);
        }
    }
}

// x rows [first, first + ROWS) by panels p to p + COLUMNS - 1.
template <int ROWS, int COLUMNS>
static void tile_int8(const LinearArgs& args, const PanelX& x, i64 first, i64 p, const Int8Panels& w) {
    constexpr i64 kLanes = kInt8Panels * kPanelRows;
    const Matrix& m = args.w;
    const i64 unit = panel_unit(m), per_group = m.group / unit;
    __m512 total[ROWS][COLUMNS];
    MC_UNROLL
    for (int a = 0; a < ROWS; ++a) {
        MC_UNROLL
        for (int b = 0; b < COLUMNS; ++b) total[a][b] = _mm512_setzero_ps();
    }
    for (i64 u = 0; u < m.cols / unit; ++u) {
        __m512i sum[ROWS][COLUMNS];
        dot_int8_unit<ROWS, COLUMNS>(x, first, u, unit, w, sum);
        const float* scales = w.scales + u / per_group * kLanes;
        const float* offsets = w.offsets + u / per_group * kLanes;
        MC_UNROLL
        for (int a = 0; a < ROWS; ++a) {
            const __m512 scale = _mm512_set1_ps(x.scales(first + a)[u]);
            MC_UNROLL
            for (int b = 0; b < COLUMNS; ++b) {
                const __m512 real = _mm512_cvtepi32_ps(sum[a][b]);
                __m512 part = _mm512_fmadd_ps(real, _mm512_load_ps(scales + b * kPanelRows), _mm512_setzero_ps());
                if (m.offsets != nullptr) {
                    const __m512 of_x = _mm512_set1_ps(x.sums(first + a)[u]);
                    part = _mm512_fmadd_ps(of_x, _mm512_load_ps(offsets + b * kPanelRows), part);
                }
                total[a][b] = _mm512_fmadd_ps(part, scale, total[a][b]);
            }
        }
    }
    for (int a = 0; a < ROWS; ++a) {
        for (int b = 0; b < COLUMNS; ++b) finish_panel(args, first + a, (p + b) * kPanelRows, total[a][b]);
    }
}

template <int COLUMNS>
static void tiles_int8(const LinearArgs& args, const PanelX& x, i64 count, i64 p, const Int8Panels& w, i64 j) {
    if (count - j > kInt8Rows) count = j + kInt8Rows;
    if (count - j == kInt8Rows) return tile_int8<kInt8Rows, COLUMNS>(args, x, j, p, w);
    for (; count - j >= 2; j += 2) tile_int8<2, COLUMNS>(args, x, j, p, w);
    if (count - j == 1) tile_int8<1, COLUMNS>(args, x, j, p, w);
}

// Panels [p, p + panels), kInt8Blocks * kInt8Panels at most, by all x rows.
template <class F>
static void multiply_int8(const LinearArgs& args, const PanelX& x, i64 p, i64 panels, float* scratch) {
    const i64 size = int8_panel_floats(args.w);
    for (i64 i = 0; i < panels; ++i) {
        const Int8Panels to = int8_panels(scratch + i / kInt8Panels * size, args.w);
        unpack_int8_panel<F>(args.w, p + i, i % kInt8Panels, to);
    }
    for (i64 j = 0; j < args.n; j += kInt8Rows) {
        for (i64 i = 0; i < panels; i += kInt8Panels) {
            const Int8Panels w = int8_panels(scratch + i / kInt8Panels * size, args.w);
            if (panels - i >= kInt8Panels) {
                tiles_int8<kInt8Panels>(args, x, args.n, p + i, w, j);
            } else {
                tiles_int8<1>(args, x, args.n, p + i, w, j);
            }
        }
    }
}

// All x rows are quantised already.
template <class F>
static void many_panel_rows(Pool& pool, const SharedProducts& all, const PanelX& x) {
    constexpr i64 kBlock = kInt8Blocks * kInt8Panels * kPanelRows;
    pool.reserve(kInt8Blocks * int8_panel_floats(all.args->w) * static_cast<i64>(sizeof(float)));
    auto body = [&](i64 begin, i64 end, int worker) {
        for (i64 t = begin; t < end; ++t) {
            const ProductTask task = find_task(all, kBlock, t);
            const i64 panels = (task.rows + kPanelRows - 1) / kPanelRows;
            multiply_int8<F>(*task.args, x, task.r / kPanelRows, panels, static_cast<float*>(pool.scratch(worker)));
        }
    };
    parallel(pool, count_tasks(all, kBlock), 1, body);
}
