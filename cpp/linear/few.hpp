// y = x W^T for few rows of x and grouped weights in rows, by products of small integers: what linear/words.hpp and
// linear/bytes.hpp have in common.
//
// x is quantised once for all products of the same x. Then threads take blocks of weight rows, which meet x in fours of
// rows: a second four finds the weights in the first cache level. A method K, of a format, says
//   kRows, kWeightsPerTask            weight rows of a block; how many weights are worth a task
//   row_bytes(m)                      bytes that a quantised row of x takes
//   quantise(m, x, to, sums)          quantises a row, and with offsets (sums not null) sums it over groups
//   multiply<NX>(args, r, end, first, x, scratch)   weight rows [r, end) by x rows [first, first + NX)
// Included inside the namespace of the instruction set.

// Quantised rows of x and their sums over groups, at fixed distances.
struct FewX {
    const u8* blocks;
    i64 pitch;
    const float* sums;
    i64 sums_pitch;

    FewX from(i64 row) const { return {blocks + row * pitch, pitch, sums + row * sums_pitch, sums_pitch}; }
};

MC_INLINE V floats_at(const GroupFloats& g, i64 i, int n) {
    if (g.type == ScaleType::f16) return loadn_f16(static_cast<const u16*>(g.data) + i, n);
    if (g.type == ScaleType::f32) return loadn(static_cast<const float*>(g.data) + i, n);
    float lanes[W];
    for (int k = 0; k < n; ++k) lanes[k] = float_at(g, i + k);
    return loadn(lanes, n);
}

// Floats of scratch that the scales of one weight row take.
MC_INLINE i64 scales_pitch(const Matrix& m) { return (m.cols / m.group + W - 1) / W * W + W; }

// Scales of a weight row as float32 with zeros behind; the products of its offsets go to total.
template <int NX>
MC_INLINE void read_groups(const Matrix& m, i64 row, const FewX& x, float* scales, V* total) {
    const i64 groups = m.cols / m.group;
    i64 g = 0;
    for (; g < groups; g += W) {
        const int n = groups - g < W ? static_cast<int>(groups - g) : W;
        store(scales + g, floats_at(scales_of(m), row * groups + g, n));
        if (m.offsets == nullptr) continue;
        const V offsets = floats_at(offsets_of(m), row * groups + g, n);
        for (int j = 0; j < NX; ++j) total[j] = fma(offsets, loadn(x.sums + j * x.sums_pitch + g, n), total[j]);
    }
    store(scales + g, zero());
}

// The weight rows of a task by all rows of x.
template <class K>
MC_INLINE void multiply_few(const ProductTask& task, const FewX& x, float* scratch) {
    const i64 n = task.args->n, end = task.r + task.rows;
    i64 j = 0;
    for (; j + 4 <= n; j += 4) K::template multiply<4>(*task.args, task.r, end, j, x, scratch);
    if (n - j == 3) K::template multiply<3>(*task.args, task.r, end, j, x, scratch);
    if (n - j == 2) K::template multiply<2>(*task.args, task.r, end, j, x, scratch);
    if (n - j == 1) K::template multiply<1>(*task.args, task.r, end, j, x, scratch);
}

template <class K>
static void linear_few_integers(Pool& pool, const SharedProducts& all) {
    const LinearArgs& args = *all.args;
    const Matrix& m = args.w;
    // A line more than a row takes: rows a multiple of 4096 bytes apart would fall on the same cache sets.
    const i64 pitch = K::row_bytes(m) + 64;
    const i64 groups = m.offsets != nullptr ? m.cols / m.group : 0;
    pool.reserve_shared(args.n * (pitch + groups * static_cast<i64>(sizeof(float))));
    pool.reserve(4 * scales_pitch(m) * static_cast<i64>(sizeof(float)));
    u8* blocks = static_cast<u8*>(pool.shared());
    float* sums = reinterpret_cast<float*>(blocks + args.n * pitch);
    auto quantise = [&](i64 begin, i64 end, int) {
        for (i64 j = begin; j < end; ++j) {
            K::quantise(m, args.x + j * m.cols, blocks + j * pitch, groups > 0 ? sums + j * groups : nullptr);
        }
    };
    parallel(pool, args.n, 4, quantise);
    const FewX x = {blocks, pitch, sums, groups};
    auto body = [&](i64 begin, i64 end, int worker) {
        float* scratch = static_cast<float*>(pool.scratch(worker));
        for (i64 t = begin; t < end; ++t) multiply_few<K>(find_task(all, K::kRows, t), x, scratch);
    };
    parallel(pool, count_tasks(all, K::kRows), K::kWeightsPerTask / (K::kRows * args.n * m.cols) + 1, body);
}
