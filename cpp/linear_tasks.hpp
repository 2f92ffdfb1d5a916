// How products of many rows are shared out among threads by weight rows, and how their sums end up in y.
// Included inside the namespace of the instruction set, for units with AVX-512.

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

// Weight rows of a task, in whole panels: fewer than `most` where there are too few for every thread to get some.
static i64 rows_of_task(const Pool& pool, const SharedProducts& all, i64 panel, i64 most) {
    i64 total = 0;
    for (i64 i = 0; i < all.count; ++i) total += all.args[i].w.rows;
    const i64 share = total / (8 * pool.threads()) / panel * panel;
    return share < panel ? panel : share < most ? share : most;
}

// Writes sums of weight rows [column, column + count), at most 16, of one x row after another.
struct FinishLanes {
    const LinearArgs& args;
    i64 column;
    __mmask16 mask;
    __m512 bias;

    FinishLanes(const LinearArgs& of, i64 first, i64 count)
        : args(of), column(first), mask(lanes(static_cast<int>(count))), bias(zero().v) {
        if (args.bias != nullptr) bias = _mm512_maskz_loadu_ps(mask, args.bias + column);
    }
    void store(i64 row, __m512 sum) const {
        float* y = args.y + row * args.w.rows + column;
        __m512 value = _mm512_add_ps(sum, bias);
        if (args.add) value = _mm512_fmadd_ps(_mm512_set1_ps(args.scale), value, _mm512_maskz_loadu_ps(mask, y));
        _mm512_mask_storeu_ps(y, mask, value);
    }
};
