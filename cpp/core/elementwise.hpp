// Ops without weight matrices: norms, rotary positions, gates, and what the sampler needs.
// Included inside the namespace of the instruction set.

constexpr i64 kElementsPerTask = 16384;  // below this, waking another thread costs more than it gives

MC_INLINE i64 rows_per_task(i64 width) {
    return width >= kElementsPerTask ? 1 : kElementsPerTask / (width > 0 ? width : 1);
}

// Calls body(i, lanes) for each vector of [0, size); lanes < W only in the last call.
template <class Body>
MC_INLINE void each_vector(i64 size, Body body) {
    i64 i = 0;
    for (; i + W <= size; i += W) body(i, W);
    if (i < size) body(i, static_cast<int>(size - i));
}
MC_INLINE V load_some(const float* p, int n) { return n == W ? load(p) : loadn(p, n); }
MC_INLINE void store_some(float* p, V a, int n) {
    if (n == W) {
        store(p, a);
    } else {
        storen(p, a, n);
    }
}

static void rms_norm(Pool& pool, const float* x, const float* weight, float* y, i64 rows, i64 width,
                     float eps) {
    auto body = [=](i64 begin, i64 end, int) {
        for (i64 r = begin; r < end; ++r) {
            const float* row = x + r * width;
            float* result = y + r * width;
            V sum = zero();
            each_vector(width, [&](i64 i, int n) {
                const V a = load_some(row + i, n);
                sum = fma(a, a, sum);
            });
            const V scale = set1(1.0F / sqrtf(hsum(sum) / static_cast<float>(width) + eps));
            each_vector(width, [&](i64 i, int n) {
                store_some(result + i, mul(mul(load_some(row + i, n), scale), load_some(weight + i, n)), n);
            });
        }
    };
    parallel(pool, rows, rows_per_task(width), body);
}

static void rotary(Pool& pool, const RotaryArgs& args) {
    const i64 half = args.d / 2;
    auto body = [&](i64 begin, i64 end, int) {
        for (i64 r = begin; r < end; ++r) {
            const float* cos = args.cos + args.positions[r] * half;
            const float* sin = args.sin + args.positions[r] * half;
            for (i64 h = 0; h < args.heads; ++h) {
                float* low = args.x + (r * args.heads + h) * args.d;
                float* high = low + half;
                each_vector(half, [&](i64 i, int n) {
                    const V a = load_some(low + i, n), b = load_some(high + i, n);
                    const V c = load_some(cos + i, n), s = load_some(sin + i, n);
                    store_some(low + i, sub(mul(a, c), mul(b, s)), n);
                    store_some(high + i, fma(b, c, mul(a, s)), n);
                });
            }
        }
    };
    parallel(pool, args.n, rows_per_task(args.heads * args.d), body);
}

static void silu_mul(Pool& pool, const float* gate, const float* up, float* y, i64 size) {
    auto body = [=](i64 begin, i64 end, int) {
        each_vector(end - begin, [&](i64 i, int n) {
            const V g = load_some(gate + begin + i, n);
            const V slope = add(set1(1.0F), exp(sub(zero(), g)));
            store_some(y + begin + i, mul(div(g, slope), load_some(up + begin + i, n)), n);
        });
    };
    parallel(pool, size, kElementsPerTask, body);
}

static void add_scaled(Pool& pool, float* x, const float* y, float scale, i64 size) {
    auto body = [=](i64 begin, i64 end, int) {
        each_vector(end - begin, [&](i64 i, int n) {
            const V a = load_some(x + begin + i, n);
            store_some(x + begin + i, fma(set1(scale), load_some(y + begin + i, n), a), n);
        });
    };
    parallel(pool, size, kElementsPerTask, body);
}

static float log_sum_exp_row(const float* row, i64 width) {
    V most = set1(-INFINITY);
    i64 i = 0;
    for (; i + W <= width; i += W) most = max(load(row + i), most);
    float top = hmax(most);
    for (; i < width; ++i) top = row[i] > top ? row[i] : top;
    // Nothing but -inf sums to 0; an infinite or NaN entry stays what it is.
    if (!(top > -INFINITY && top < INFINITY)) top = 0.0F;
    constexpr i64 kBlock = 64 * W;  // summed in float, then blocks in double
    double sum = 0.0;
    for (i64 begin = 0; begin < width; begin += kBlock) {
        const i64 size = width - begin < kBlock ? width - begin : kBlock;
        V part = zero();
        each_vector(size, [&](i64 j, int n) {
            V value = exp(sub(load_some(row + begin + j, n), set1(top)));
            if (n < W) {
                float lane[W];
                store(lane, value);
                value = loadn(lane, n);
            }
            part = add(part, value);
        });
        sum += static_cast<double>(hsum(part));
    }
    return static_cast<float>(static_cast<double>(top) + ::log(sum));
}

static void log_sum_exp(Pool& pool, const float* x, float* y, i64 rows, i64 width) {
    auto body = [=](i64 begin, i64 end, int) {
        for (i64 r = begin; r < end; ++r) y[r] = log_sum_exp_row(x + r * width, width);
    };
    parallel(pool, rows, rows_per_task(width), body);
}

// Larger keys come first in the result: greater value, then lower column; NaN after everything.
MC_INLINE u64 top_k_key(float value, i64 column) {
    u32 bits = 0;
    value += 0.0F;  // -0 ranks with +0
    memcpy(&bits, &value, sizeof bits);
    u32 order = 0;
    if (value == value) order = (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
    return (static_cast<u64>(order) << 32) | static_cast<u32>(~static_cast<u32>(column));
}

// Restores the heap (smallest key on top) below position i.
MC_INLINE void sift_down(u64* heap, i64 size, i64 i) {
    const u64 key = heap[i];
    for (;;) {
        i64 child = 2 * i + 1;
        if (child >= size) break;
        if (child + 1 < size && heap[child + 1] < heap[child]) ++child;
        if (heap[child] >= key) break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = key;
}

static void top_k_row(const float* row, i64 width, i64 k, u64* heap, float* values, i32* columns) {
    for (i64 c = 0; c < k; ++c) heap[c] = top_k_key(row[c], c);
    for (i64 i = k / 2 - 1; i >= 0; --i) sift_down(heap, k, i);
    i64 c = k;
    while (c < width) {
        const u32 least = ~static_cast<u32>(heap[0]);  // the column of the smallest kept value
        const float bar = row[least];
        // A vector without anything above the bar changes nothing: ties go to lower columns. A bar
        // that is NaN lets everything through.
        if (c + W <= width && hmax(load(row + c)) <= bar) {
            c += W;
            continue;
        }
        const i64 end = c + W < width ? c + W : width;
        for (; c < end; ++c) {
            const u64 key = top_k_key(row[c], c);
            if (key > heap[0]) {
                heap[0] = key;
                sift_down(heap, k, 0);
            }
        }
    }
    for (i64 size = k; size > 0; --size) {
        const i64 column = static_cast<i64>(~static_cast<u32>(heap[0]));
        values[size - 1] = row[column];
        columns[size - 1] = static_cast<i32>(column);
        heap[0] = heap[size - 1];
        if (size > 1) sift_down(heap, size - 1, 0);
    }
}

static void top_k(Pool& pool, const float* x, float* values, i32* columns, i64 rows, i64 width, i64 k) {
    if (k <= 0) return;
    pool.reserve(k * static_cast<i64>(sizeof(u64)));
    auto body = [=, &pool](i64 begin, i64 end, int worker) {
        u64* heap = static_cast<u64*>(pool.scratch(worker));
        for (i64 r = begin; r < end; ++r) {
            top_k_row(x + r * width, width, k, heap, values + r * k, columns + r * k);
        }
    };
    parallel(pool, rows, rows_per_task(width), body);
}
