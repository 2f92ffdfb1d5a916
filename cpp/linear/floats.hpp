// y = x W^T in float32, for any weights. Included inside the namespace of the instruction set.
//
// Few rows (decoding): weights are unpacked in registers and met with every x row at once, so that
// they cross the memory bus once. Many rows (prefill): blocks of weight rows are unpacked to scratch
// and multiplied as the left operand, y^T = W x^T, by simd/tile.hpp.

constexpr i64 kFewRows = 8;

// What dot_rows needs besides the weights: x rows, and their sums over groups (with offsets only).
struct FewRows {
    const float* x[kFewRows];
    const float* sums[kFewRows];
};

// out[i][j] = dot(weight row r + i, x row j); rows past the end repeat the last one.
template <class F, int ROWS, int NX, bool OFFSETS>
static void dot_grouped(const Matrix& m, i64 r, const FewRows& few, float (*out)[NX]) {
    constexpr int PARTS = F::STEP / W;
    const i64 groups = m.cols / m.group;
    const u8* rows[ROWS];
    i64 first[ROWS];
    V total[ROWS][NX];
    float shift[ROWS][NX];
    for (int i = 0; i < ROWS; ++i) {
        const i64 row = r + i < m.rows ? r + i : m.rows - 1;
        rows[i] = F::row(m, row);
        first[i] = row * groups;
        for (int j = 0; j < NX; ++j) total[i][j] = zero();
        for (int j = 0; j < NX; ++j) shift[i][j] = 0.0F;
    }
    for (i64 g = 0; g < groups; ++g) {
        V part[ROWS][NX];
        for (int i = 0; i < ROWS; ++i) {
            for (int j = 0; j < NX; ++j) part[i][j] = zero();
        }
        for (i64 k = g * m.group; k < (g + 1) * m.group; k += F::STEP) {
            MC_UNROLL
            for (int i = 0; i < ROWS; ++i) {
                V w[PARTS];
                F::template load<OFFSETS>(w, rows[i], k);
                MC_UNROLL
                for (int j = 0; j < NX; ++j) {
                    MC_UNROLL
                    for (int p = 0; p < PARTS; ++p) {
                        part[i][j] = fma(w[p], load(few.x[j] + k + p * W), part[i][j]);
                    }
                }
            }
        }
        for (int i = 0; i < ROWS; ++i) {
            const V scale = set1(float_at(scales_of(m), first[i] + g));
            for (int j = 0; j < NX; ++j) total[i][j] = fma(scale, part[i][j], total[i][j]);
            if constexpr (OFFSETS) {
                const float offset = float_at(offsets_of(m), first[i] + g);
                for (int j = 0; j < NX; ++j) shift[i][j] += offset * few.sums[j][g];
            }
        }
    }
    for (int i = 0; i < ROWS; ++i) {
        for (int j = 0; j < NX; ++j) out[i][j] = hsum(total[i][j]) + shift[i][j];
    }
}

template <class F, int ROWS, int NX>
static void dot_floats(const Matrix& m, i64 r, const FewRows& few, float (*out)[NX]) {
    const u8* rows[ROWS];
    V total[ROWS][NX];
    for (int i = 0; i < ROWS; ++i) {
        rows[i] = F::row(m, r + i < m.rows ? r + i : m.rows - 1);
        for (int j = 0; j < NX; ++j) total[i][j] = zero();
    }
    i64 k = 0;
    for (; k + W <= m.cols; k += W) {
        MC_UNROLL
        for (int i = 0; i < ROWS; ++i) {
            V w[1];
            F::template load<true>(w, rows[i], k);
            MC_UNROLL
            for (int j = 0; j < NX; ++j) total[i][j] = fma(w[0], load(few.x[j] + k), total[i][j]);
        }
    }
    if (k < m.cols) {
        const int n = static_cast<int>(m.cols - k);
        for (int i = 0; i < ROWS; ++i) {
            const V w = F::load_some(rows[i], k, n);
            for (int j = 0; j < NX; ++j) total[i][j] = fma(w, loadn(few.x[j] + k, n), total[i][j]);
        }
    }
    for (int i = 0; i < ROWS; ++i) {
        for (int j = 0; j < NX; ++j) out[i][j] = hsum(total[i][j]);
    }
}

// NX is n rounded up to a power of two: x rows past n repeat the last one.
template <class F, int NX>
static void linear_few_rows(Pool& pool, const LinearArgs& args, const FewRows& few) {
    constexpr int ROWS = NX == 1 ? 4 : 2;
    const Matrix& m = args.w;
    const i64 blocks = (m.rows + ROWS - 1) / ROWS;
    auto body = [&](i64 begin, i64 end, int) {
        for (i64 b = begin; b < end; ++b) {
            float out[ROWS][NX];
            if constexpr (!F::GROUPED) {
                dot_floats<F, ROWS, NX>(m, b * ROWS, few, out);
            } else if (m.offsets != nullptr) {
                dot_grouped<F, ROWS, NX, true>(m, b * ROWS, few, out);
            } else {
                dot_grouped<F, ROWS, NX, false>(m, b * ROWS, few, out);
            }
            for (int i = 0; i < ROWS && b * ROWS + i < m.rows; ++i) {
                for (i64 j = 0; j < args.n; ++j) finish(args, j, b * ROWS + i, out[i][j]);
            }
        }
    };
    constexpr i64 kWeightsPerTask = 65536;
    const i64 grain = kWeightsPerTask / (ROWS * NX * (m.cols > 0 ? m.cols : 1)) + 1;
    parallel(pool, blocks, grain, body);
}

template <class F>
static void linear_few(Pool& pool, const LinearArgs& args) {
    const Matrix& m = args.w;
    FewRows few = {};
    const i64 groups = m.offsets != nullptr ? m.cols / m.group : 0;
    // Several rows are copied a line further apart: at a multiple of 4096 bytes they would fall on the same
    // sets of the cache, which then holds fewer of them than there are.
    const i64 pitch = args.n > 1 ? (m.cols + 15) / 16 * 16 + 16 : 0;
    pool.reserve_shared((args.n * (pitch + groups) + 1) * static_cast<i64>(sizeof(float)));
    float* copies = static_cast<float*>(pool.shared());
    float* sums = copies + args.n * pitch;
    for (i64 j = 0; j < kFewRows; ++j) {
        const i64 row = j < args.n ? j : args.n - 1;
        few.x[j] = pitch > 0 ? copies + row * pitch : args.x;
        few.sums[j] = sums + row * groups;
    }
    auto prepare = [&](i64 begin, i64 end, int) {
        for (i64 j = begin; j < end && pitch > 0; ++j) {
            memcpy(copies + j * pitch, args.x + j * m.cols, static_cast<size_t>(m.cols) * sizeof(float));
        }
        for (i64 i = begin * groups; i < end * groups; ++i) {
            const float* x = args.x + i * m.group;
            V sum = zero();
            for (i64 k = 0; k < m.group; k += W) sum = add(sum, load(x + k));
            sums[i] = hsum(sum);
        }
    };
    parallel(pool, args.n, args.n, prepare);
    if (args.n == 1) {
        linear_few_rows<F, 1>(pool, args, few);
    } else if (args.n == 2) {
        linear_few_rows<F, 2>(pool, args, few);
    } else if (args.n <= 4) {
        linear_few_rows<F, 4>(pool, args, few);
    } else {
        linear_few_rows<F, 8>(pool, args, few);
    }
}

constexpr i64 kDepth = 128;         // columns of W multiplied at once; a multiple of 64
constexpr i64 kRowsAtOnce = 512;    // rows of x packed at once: bounds scratch on long prefills
constexpr i64 kWeightRows = 8 * kTileRows;

// Packs x rows [first, first + count) as panels of kTileColumns rows: panel p holds, for each k,
// kTileColumns neighbours; rows past the end are 0.
static void pack_rows(Pool& pool, const LinearArgs& args, i64 first, i64 count, float* packed) {
    const i64 depth = args.w.cols;
    constexpr i64 kSpan = 64;  // columns per task
    const i64 spans = (depth + kSpan - 1) / kSpan;
    auto body = [&](i64 begin, i64 end, int) {
        for (i64 t = begin; t < end; ++t) {
            const i64 panel = t / spans, start = t % spans * kSpan;
            const i64 stop = start + kSpan < depth ? start + kSpan : depth;
            for (i64 j = 0; j < kTileColumns; ++j) {
                const i64 row = panel * kTileColumns + j;
                const float* x = args.x + (first + row) * depth;
                float* to = packed + panel * kTileColumns * depth + j;
                for (i64 k = start; k < stop; ++k) to[k * kTileColumns] = row < count ? x[k] : 0.0F;
            }
        }
    };
    const i64 panels = (count + kTileColumns - 1) / kTileColumns;
    parallel(pool, panels * spans, 4, body);
}

// y rows [first, first + count) from packed x.
template <class F>
static void multiply_packed(Pool& pool, const LinearArgs& args, i64 first, i64 count, i64 block,
                            const float* packed) {
    const Matrix& m = args.w;
    const i64 pitch = (count + kTileColumns - 1) / kTileColumns * kTileColumns + 16;
    auto body = [&](i64 begin, i64 end, int worker) {
        float* left = static_cast<float*>(pool.scratch(worker));
        float* result = left + block * kDepth;
        for (i64 t = begin; t < end; ++t) {
            const i64 r = t * block;
            const i64 rows = m.rows - r < block ? m.rows - r : block;
            for (i64 k = 0; k < m.cols; k += kDepth) {
                const i64 stop = k + kDepth < m.cols ? k + kDepth : m.cols;
                for (i64 i = 0; i < rows; ++i) unpack_row<F>(m, r + i, k, stop, 1.0F, left + i * kDepth);
                for (i64 c = 0; c < count; c += kTileColumns) {
                    const i64 columns = count - c < kTileColumns ? count - c : kTileColumns;
                    tile(rows, columns, stop - k, left, kDepth, packed + c * m.cols + k * kTileColumns,
                         kTileColumns, result + c, pitch, k > 0);
                }
            }
            for (i64 j = 0; j < count; ++j) {
                for (i64 i = 0; i < rows; ++i) finish(args, first + j, r + i, result[i * pitch + j]);
            }
        }
    };
    parallel(pool, (m.rows + block - 1) / block, 1, body);
}

template <class F>
static void linear_many(Pool& pool, const LinearArgs& args) {
    const Matrix& m = args.w;
    const i64 most = args.n < kRowsAtOnce ? args.n : kRowsAtOnce;
    const i64 columns = (most + kTileColumns - 1) / kTileColumns * kTileColumns;
    // Smaller blocks where there are too few rows of W for every thread to get some.
    const i64 share = m.rows / (4 * pool.threads()) / kTileRows * kTileRows;
    const i64 block = share < kTileRows ? kTileRows : share < kWeightRows ? share : kWeightRows;
    constexpr i64 kSize = static_cast<i64>(sizeof(float));
    pool.reserve_shared(columns * m.cols * kSize);
    pool.reserve(block * (kDepth + columns + 16) * kSize);
    float* packed = static_cast<float*>(pool.shared());
    for (i64 first = 0; first < args.n; first += kRowsAtOnce) {
        const i64 count = args.n - first < kRowsAtOnce ? args.n - first : kRowsAtOnce;
        pack_rows(pool, args, first, count, packed);
        multiply_packed<F>(pool, args, first, count, block, packed);
    }
}

template <>
struct Multiply<Method::few_floats> {
    template <class F>
    static void run(Pool& pool, const SharedProducts& all) {
        for (i64 i = 0; i < all.count; ++i) linear_few<F>(pool, all.args[i]);
    }
};

template <>
struct Multiply<Method::many_floats> {
    template <class F>
    static void run(Pool& pool, const SharedProducts& all) {
        for (i64 i = 0; i < all.count; ++i) linear_many<F>(pool, all.args[i]);
    }
};
