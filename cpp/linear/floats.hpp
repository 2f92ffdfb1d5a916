// y = x W^T by dot products of floats, for any weights. Included inside the namespace of the instruction set.
//
// Lanes are columns: each output has a vector of sums, to which the products of W columns (in bf16 of 2 W, in pairs) are
// added at a time, in ascending order, and whose lanes are added in the end. That order is the same however many rows of x
// there are. Few rows meet weights that are unpacked in registers, so that these cross the memory bus once; for many rows
// blocks of weight rows are unpacked to scratch, unless they lie in memory as they are multiplied. x is copied, or
// rounded to bf16, once. A kind of arithmetic D says
//   Element, kStep       what x and unpacked weights are made of; columns of a vector
//   Part                 a vector of them; load(p)
//   get<F>(row, k), some<F>(row, k, n)   columns from k on of a weight row of format F, which has no groups
//   put(to, v)           stores W floats as elements;  dot(sum, w, x)   sum with products added

constexpr i64 kFewRows = 8;         // rows of x that meet weights in registers
constexpr i64 kRowsAtOnce = 512;    // rows of x copied at once: bounds scratch on long prefills
constexpr i64 kBlockBytes = 192 * 1024;  // of weight rows in scratch, or passed over by all rows of x, at once
constexpr i64 kDotBytes = 3072;     // of a row at once at most: those of a tile's rows fit into the first cache level
constexpr int kFourRows = 4;         // weight rows at once in registers
#if defined(MC_ISA_AVX2) || defined(MC_ISA_AVXVNNI) || defined(MC_ISA_SCALAR)
constexpr int kMostX = 3;            // x rows at once in registers
#else
constexpr int kMostX = 6;
#endif

struct FloatDots {
    using Element = float;
    using Part = V;
    static constexpr int kStep = W;

    static V load(const float* p) { return MC_NAMESPACE::load(p); }
    template <class F>
    static V get(const u8* row, i64 k) {
        V v[1];
        F::template load<true>(v, row, k);
        return v[0];
    }
    template <class F>
    static V some(const u8* row, i64 k, int n) {
        return F::load_some(row, k, n);
    }
    static void put(float* to, V v) { store(to, v); }
    static V dot(V sum, V w, V x) { return fma(w, x, sum); }
};

#if defined(MC_HAS_BF16_DOT)
struct BF16Dots {
    using Element = u16;
    using Part = BF16s;
    static constexpr int kStep = 2 * W;

    static Part load(const u16* p) { return load_bf16s(p); }
    template <class F>
    static Part get(const u8* row, i64 k) {
        if constexpr (F::KIND == Kind::bf16) return load_bf16s(reinterpret_cast<const u16*>(row) + k);
        V v[2];
        F::template load<true>(v, row, k);
        F::template load<true>(v + 1, row, k + W);
        return join_bf16(v[0], v[1]);
    }
    template <class F>
    static Part some(const u8* row, i64 k, int n) {
        const int low = n < W ? n : W;
        return join_bf16(F::load_some(row, k, low), F::load_some(row, k + low, n - low));
    }
    static void put(u16* to, V v) { store_bf16s(to, v); }
    static V dot(V sum, Part w, Part x) { return dot_bf16(sum, w, x); }
};
#endif

// Weight rows as they lie: those beyond the last one repeat it.
template <class F, class D, int ROWS = kFourRows>
struct StoredRows {
    const u8* rows[ROWS];

    StoredRows(const Matrix& m, i64 r) {
        for (int i = 0; i < ROWS; ++i) rows[i] = F::row(m, r + i < m.rows ? r + i : m.rows - 1);
    }
    typename D::Part get(int i, i64 k) const { return D::template get<F>(rows[i], k); }
    typename D::Part some(int i, i64 k, int n) const { return D::template some<F>(rows[i], k, n); }
};

// Weight rows in scratch, with zeros behind.
template <class D>
struct UnpackedRows {
    const typename D::Element* rows;
    i64 pitch;

    typename D::Part get(int i, i64 k) const { return D::load(rows + i * pitch + k); }
    typename D::Part some(int i, i64 k, int) const { return get(i, k); }
};

// Whether unpacking changes nothing.
template <class F, class D>
constexpr bool lies_unpacked = F::KIND == (D::kStep == W ? Kind::f32 : Kind::bf16);

// Elements from one row to the next: whole lines, and one more, since rows a multiple of 4096 bytes apart would fall on
// the same sets of the cache.
template <class D>
MC_INLINE i64 dot_pitch(i64 cols) {
    constexpr i64 kLine = 64 / static_cast<i64>(sizeof(typename D::Element));
    return ((cols + kLine - 1) / kLine + 1) * kLine;
}

// `count` floats as elements, with zeros up to the next row.
template <class D>
MC_INLINE void put_row(const float* x, i64 count, i64 pitch, typename D::Element* to) {
    i64 k = 0;
    for (; k + W <= count; k += W) D::put(to + k, load(x + k));
    for (; k < pitch; k += W) D::put(to + k, k < count ? loadn(x + k, static_cast<int>(count - k)) : zero());
}

// A whole weight row as elements.
template <class F, class D>
static void unpack_elements(const Matrix& m, i64 r, i64 pitch, typename D::Element* to) {
    if constexpr (F::GROUPED) {
        unpack_row<F>(m, r, 0, m.cols, 1.0F, to);
        for (i64 k = m.cols; k < pitch; k += W) store(to + k, zero());
    } else {
        const u8* row = F::row(m, r);
        i64 k = 0;
        V v[1];
        for (; k + W <= m.cols; k += W) {
            F::template load<true>(v, row, k);
            D::put(to + k, v[0]);
        }
        for (; k < pitch; k += W) D::put(to + k, k < m.cols ? F::load_some(row, k, static_cast<int>(m.cols - k)) : zero());
    }
}

// A vector of columns: get(i) of weight row i.
template <class D, int ROWS, int XR, class Get>
MC_INLINE void dot_step(const Get& get, const typename D::Element* x, i64 pitch, V (*sum)[XR]) {
    typename D::Part right[XR];
    MC_UNROLL
    for (int j = 0; j < XR; ++j) right[j] = D::load(x + j * pitch);
    MC_UNROLL
    for (int i = 0; i < ROWS; ++i) {
        const typename D::Part left = get(i);
        MC_UNROLL
        for (int j = 0; j < XR; ++j) sum[i][j] = D::dot(sum[i][j], left, right[j]);
    }
}

// Adds the products of columns [k, end) of ROWS weight rows by XR rows of x.
template <class D, int ROWS, int XR, class Rows>
MC_INLINE void dot_columns(const Rows& w, const typename D::Element* x, i64 pitch, i64 k, i64 end, V (*sum)[XR]) {
    for (; k + D::kStep <= end; k += D::kStep) dot_step<D, ROWS, XR>([&](int i) { return w.get(i, k); }, x + k, pitch, sum);
    if (k < end) dot_step<D, ROWS, XR>([&](int i) { return w.some(i, k, static_cast<int>(end - k)); }, x + k, pitch, sum);
}

// finish() of kFourRows columns.
MC_INLINE void finish_four(const LinearArgs& args, i64 row, i64 column, float* value) {
    float* y = args.y + row * args.w.rows + column;
    if (args.bias != nullptr) {
        for (int i = 0; i < kFourRows; ++i) value[i] += args.bias[column + i];
    }
    if (args.add) {
        for (int i = 0; i < kFourRows; ++i) value[i] = y[i] + args.scale * value[i];
    }
    memcpy(y, value, kFourRows * sizeof(float));
}

// A tile of kFourRows by XR sums, in which all columns are, to y.
template <int XR>
MC_INLINE void finish_dots(const LinearArgs& args, i64 r, i64 row, const V (*sum)[XR]) {
    float out[XR][kFourRows];
    MC_UNROLL
    for (int j = 0; j < XR; ++j) hsum4(sum[0][j], sum[1][j], sum[2][j], sum[3][j], out[j]);
    if (args.w.rows - r >= kFourRows) {
        for (int j = 0; j < XR; ++j) finish_four(args, row + j, r, out[j]);
    } else {
        for (int j = 0; j < XR; ++j) {
            for (int i = 0; i < args.w.rows - r; ++i) finish(args, row + j, r + i, out[j][i]);
        }
    }
}

// A tile of outputs on its way through the columns: `kept` has the sums of those before k, and takes them where `end` is not
// the last.
template <class D>
struct FloatTile {
    const LinearArgs& args;
    i64 r, row;
    const typename D::Element* x;  // of that row
    i64 pitch, k, end;
    V* kept;
};

// By XR rows of x from the tile's row number `first` on. PARTS: not all columns are in one run.
template <bool PARTS, int XR, class D, class Rows>
MC_INLINE void run_dots(const FloatTile<D>& t, const Rows& w, int first) {
    V sum[kFourRows][XR];
    MC_UNROLL
    for (int i = 0; i < kFourRows; ++i) {
        MC_UNROLL
        for (int j = 0; j < XR; ++j) sum[i][j] = PARTS && t.k > 0 ? t.kept[(first + j) * kFourRows + i] : zero();
    }
    dot_columns<D, kFourRows, XR>(w, t.x + first * t.pitch, t.pitch, t.k, t.end, sum);
    if (!PARTS || t.end == t.args.w.cols) return finish_dots<XR>(t.args, t.r, t.row + first, sum);
    MC_UNROLL
    for (int i = 0; i < kFourRows; ++i) {
        MC_UNROLL
        for (int j = 0; j < XR; ++j) t.kept[(first + j) * kFourRows + i] = sum[i][j];
    }
}

// By `count` rows of x: of more than kMostX the first ones.
template <bool PARTS, class D, class Rows>
MC_INLINE void run_some_dots(const FloatTile<D>& t, const Rows& w, i64 count) {
    if (count == 1) return run_dots<PARTS, 1>(t, w, 0);
    if (count == 2) return run_dots<PARTS, 2>(t, w, 0);
    if constexpr (kMostX == 3) return run_dots<PARTS, 3>(t, w, 0);
    if (count == 3) return run_dots<PARTS, 3>(t, w, 0);
    if (count >= kMostX) return run_dots<PARTS, kMostX>(t, w, 0);
    run_dots<PARTS, 4>(t, w, 0);
    if (count == 5) run_dots<PARTS, 1>(t, w, 4);
}

// Two weight rows of groups from r on by XR rows of x. Weights are the floats that unpack_row makes.
template <class F, int XR>
static void finish_grouped_dots(const LinearArgs& args, i64 r, i64 row, const float* x, i64 pitch) {
    constexpr int kRows = 2, kParts = F::STEP / W;
    const Matrix& m = args.w;
    const i64 groups = m.cols / m.group;
    const u8* rows[kRows];
    i64 first[kRows];
    V sum[kRows][XR];
    for (int i = 0; i < kRows; ++i) {
        const i64 from = r + i < m.rows ? r + i : m.rows - 1;
        rows[i] = F::row(m, from);
        first[i] = from * groups;
        for (int j = 0; j < XR; ++j) sum[i][j] = zero();
    }
    for (i64 g = 0; g < groups; ++g) {
        V scale[kRows], offset[kRows];
        for (int i = 0; i < kRows; ++i) {
            scale[i] = set1(float_at(scales_of(m), first[i] + g));
            offset[i] = set1(m.offsets != nullptr ? float_at(offsets_of(m), first[i] + g) : 0.0F);
        }
        for (i64 k = g * m.group; k < (g + 1) * m.group; k += F::STEP) {
            MC_UNROLL
            for (int i = 0; i < kRows; ++i) {
                V w[kParts];
                if (m.offsets != nullptr) {
                    F::template load<true>(w, rows[i], k);
                } else {
                    F::template load<false>(w, rows[i], k);
                }
                MC_UNROLL
                for (int p = 0; p < kParts; ++p) {
                    w[p] = fma(w[p], scale[i], offset[i]);
                    MC_UNROLL
                    for (int j = 0; j < XR; ++j) sum[i][j] = fma(w[p], load(x + j * pitch + k + p * W), sum[i][j]);
                }
            }
        }
    }
    for (int j = 0; j < XR; ++j) {
        for (int i = 0; i < kRows && r + i < m.rows; ++i) finish(args, row + j, r + i, hsum(sum[i][j]));
    }
}

// Twice kFourRows weight rows from r on by one row of x, or kFourRows by `count`, kFewRows at most: weights are unpacked in
// registers.
template <class F, class D>
static void few_dots(const LinearArgs& args, i64 r, i64 row, i64 count, const typename D::Element* x, i64 pitch) {
    if constexpr (F::GROUPED) {
        for (i64 half = r; half < r + kFourRows && half < args.w.rows; half += 2) {
            i64 j = 0;
            for (; count - j >= 4; j += 4) finish_grouped_dots<F, 4>(args, half, row + j, x + j * pitch, pitch);
            if (count - j >= 2) finish_grouped_dots<F, 2>(args, half, row + j, x + j * pitch, pitch);
            if (count % 2 != 0) finish_grouped_dots<F, 1>(args, half, row + count - 1, x + (count - 1) * pitch, pitch);
        }
    } else if (count == 1) {
        // Twice as many weight rows: four sums would wait for each other.
        V sum[2 * kFourRows][1];
        MC_UNROLL
        for (int i = 0; i < 2 * kFourRows; ++i) sum[i][0] = zero();
        dot_columns<D, 2 * kFourRows, 1>(StoredRows<F, D, 2 * kFourRows>(args.w, r), x, pitch, 0, args.w.cols, sum);
        finish_dots<1>(args, r, row, sum);
        finish_dots<1>(args, r + kFourRows, row, sum + kFourRows);
    } else {
        const StoredRows<F, D> weights(args.w, r);
        for (i64 j = 0; j < count; j += kMostX) {
            const FloatTile<D> tile = {args, r, row + j, x + j * pitch, pitch, 0, args.w.cols, nullptr};
            run_some_dots<false>(tile, weights, count - j);
        }
    }
}

// Weight rows [r, end) by `count` rows of x: blocks of them stay in a near cache while all rows of x pass by.
template <class F, class D>
static void many_dots(const LinearArgs& args, i64 r, i64 end, i64 row, i64 count, const typename D::Element* x, i64 pitch,
                      typename D::Element* scratch) {
    const Matrix& m = args.w;
    if constexpr (!lies_unpacked<F, D>) {
        for (i64 i = r; i < end; ++i) unpack_elements<F, D>(m, i, pitch, scratch + (i - r) * pitch);
    }
    constexpr i64 kMost = kDotBytes / static_cast<i64>(sizeof(typename D::Element));
    const i64 parts = (m.cols + kMost - 1) / kMost, depth = (m.cols / D::kStep / parts + 1) * D::kStep;
    V* sums = reinterpret_cast<V*>(scratch + (end - r + kFourRows) * (lies_unpacked<F, D> ? 0 : pitch));
    for (i64 j = 0; j < count; j += kMostX) {
        for (i64 k = 0; k < m.cols; k += depth) {
            const i64 stop = m.cols - k < depth ? m.cols : k + depth;
            for (i64 i = r; i < end; i += kFourRows) {
                const FloatTile<D> tile = {args, i, row + j, x + j * pitch, pitch, k, stop, sums + (i - r) * kMostX};
                if constexpr (lies_unpacked<F, D>) {
                    run_some_dots<true>(tile, StoredRows<F, D>(m, i), count - j);
                } else {
                    run_some_dots<true>(tile, UnpackedRows<D>{scratch + (i - r) * pitch, pitch}, count - j);
                }
            }
        }
    }
}

// x rows [first, first + count), copied already.
template <class F, class D>
static void multiply_dots(Pool& pool, const SharedProducts& all, i64 rows, i64 first, i64 count, const typename D::Element* x,
                          i64 pitch) {
    auto multiply = [&](i64 begin, i64 end, int worker) {
        for (i64 t = begin; t < end; ++t) {
            const ProductTask task = find_task(all, rows, t);
            if (count <= kFewRows) {
                const i64 step = !F::GROUPED && count == 1 ? 2 * kFourRows : kFourRows;
                for (i64 r = task.r; r < task.r + task.rows; r += step) few_dots<F, D>(*task.args, r, first, count, x, pitch);
            } else {
                auto* scratch = static_cast<typename D::Element*>(pool.scratch(worker));
                many_dots<F, D>(*task.args, task.r, task.r + task.rows, first, count, x, pitch, scratch);
            }
        }
    };
    constexpr i64 kWeightsPerTask = 65536;
    const i64 grain = count > kFewRows ? 1 : kWeightsPerTask / (rows * count * pitch) + 1;
    parallel(pool, count_tasks(all, rows), grain, multiply);
}

// x is copied once for all products.
template <class F, class D>
static void linear_dots(Pool& pool, const SharedProducts& all) {
    using Element = typename D::Element;
    constexpr i64 kSize = static_cast<i64>(sizeof(Element));
    const LinearArgs& args = *all.args;
    const i64 cols = args.w.cols, pitch = dot_pitch<D>(cols), most = args.n < kRowsAtOnce ? args.n : kRowsAtOnce;
    const i64 fitting = kBlockBytes / (pitch * kSize) / 32 * 32;
    const i64 rows = args.n <= kFewRows ? 4 * kFourRows : rows_of_task(pool, all, fitting < 32 ? 32 : fitting);
    pool.reserve_shared(most * pitch * kSize);
    if (args.n > kFewRows) {
        const i64 unpacked = lies_unpacked<F, D> ? 0 : pitch * kSize;
        pool.reserve((rows + kFourRows) * (unpacked + kMostX * static_cast<i64>(sizeof(V))));
    }
    Element* x = static_cast<Element*>(pool.shared());
    for (i64 first = 0; first < args.n; first += kRowsAtOnce) {
        const i64 count = args.n - first < kRowsAtOnce ? args.n - first : kRowsAtOnce;
        auto put = [&](i64 begin, i64 end, int) {
            for (i64 j = begin; j < end; ++j) put_row<D>(args.x + (first + j) * cols, cols, pitch, x + j * pitch);
        };
        parallel(pool, count, 8, put);
        multiply_dots<F, D>(pool, all, rows, first, count, x, pitch);
    }
}

template <>
struct Multiply<Method::floats> {
    template <class F>
    static void run(Pool& pool, const SharedProducts& all) {
        linear_dots<F, FloatDots>(pool, all);
    }
};

#if defined(MC_HAS_BF16_DOT)
template <>
struct Multiply<Method::bf16> {
    template <class F>
    static void run(Pool& pool, const SharedProducts& all) {
        linear_dots<F, BF16Dots>(pool, all);
    }
};
#endif
