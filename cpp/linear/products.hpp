// What all methods of multiplication share: several products of one x, tasks of weight rows, and where sums go.
// Included inside the namespace of the instruction set.

// How a level multiplies by one method, run<F>(pool, products) for the formats F that ways.hpp gives it; each file
// of methods supplies those of its own.
template <Method M>
struct Multiply;

// Several products of the same x, whose matrices differ in their rows only.
struct SharedProducts {
    const LinearArgs* args;
    i64 count;
};

// Whether `other` may share what `first` makes of x.
MC_INLINE bool may_share(const LinearArgs& first, const LinearArgs& other) {
    const Matrix &a = first.w, &b = other.w;
    return a.kind == b.kind && a.panels == b.panels && a.cols == b.cols && a.group == b.group &&
           (a.offsets == nullptr) == (b.offsets == nullptr);
}

MC_INLINE void finish(const LinearArgs& args, i64 row, i64 column, float value) {
    if (args.bias != nullptr) value += args.bias[column];
    float* y = args.y + row * args.w.rows + column;
    *y = args.add ? *y + args.scale * value : value;
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

// Weight rows of a task: fewer than `most` where there are too few for every thread to get `tasks`.
[[maybe_unused]] static i64 rows_of_task(const Pool& pool, const SharedProducts& all, i64 most, i64 tasks = 8) {
    constexpr i64 kLeast = 32;
    i64 total = 0;
    for (i64 i = 0; i < all.count; ++i) total += all.args[i].w.rows;
    const i64 share = total / (tasks * pool.threads()) / kLeast * kLeast;
    return share < kLeast ? kLeast : share < most ? share : most;
}

// Weights without columns.
[[maybe_unused]] static void multiply_nothing(const SharedProducts& all) {
    for (i64 i = 0; i < all.count; ++i) {
        const LinearArgs& args = all.args[i];
        for (i64 j = 0; j < args.n * args.w.rows; ++j) finish(args, j / args.w.rows, j % args.w.rows, 0.0F);
    }
}
