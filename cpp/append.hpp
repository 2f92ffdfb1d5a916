// Storing new keys and values in pages, and the compressed keys that end in them.
// Included by each instruction set's unit, inside its namespace.

static constexpr i64 kMaxHeadDim = 512;

// How many kernels a query at `position` sees: those with j * stride + size <= position + 1.
MC_INLINE i64 num_visible(KernelShape k, i64 position) {
    return position + 1 < k.size ? 0 : (position + 1 - k.size) / k.stride + 1;
}

MC_INLINE KernelShape coarse_shape(KernelShape k) { return {k.size * kCoarse, k.stride * kCoarse}; }

// The sequence that owns a row.
MC_INLINE i64 sequence_of(const StepView& step, i64 row) {
    i64 low = 0;
    i64 high = step.sequences - 1;
    while (low < high) {
        const i64 middle = (low + high + 1) / 2;
        if (step.cu_rows[middle] <= row) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return low;
}

MC_INLINE u16 round_to_bf16(float x) {
    u32 bits;
    memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7fffffffU) > 0x7f800000U) return static_cast<u16>((bits >> 16) | 0x40U);  // keep NaN
    return static_cast<u16>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}

MC_INLINE float bf16_value(u16 x) {
    const u32 bits = static_cast<u32>(x) << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

MC_INLINE void store_scalar(float* to, float x) { *to = x; }
MC_INLINE void store_scalar(u16* to, float x) { *to = round_to_bf16(x); }
MC_INLINE double load_scalar(const float* from) { return static_cast<double>(*from); }
MC_INLINE double load_scalar(const u16* from) { return static_cast<double>(bf16_value(*from)); }

template <class T>
static void store_rows(const AppendArgs& a, i64 begin, i64 end) {
    const i64 d = a.kv.d;
    const i64 size = a.kv.page_size;
    for (i64 row = begin; row < end; ++row) {
        const i64 position = a.step.positions[row];
        const i32* table = a.step.page_table + sequence_of(a.step, row) * a.step.max_pages;
        const i64 page = table[position / size];
        const i64 slot = position % size;
        for (i64 h = 0; h < a.kv.hkv; ++h) {
            const float* k = a.k + (row * a.kv.hkv + h) * d;
            const float* v = a.v + (row * a.kv.hkv + h) * d;
            const i64 base = (page * a.kv.hkv + h) * d * size;
            T* keys = static_cast<T*>(a.kv.keys) + base + slot;
            T* values = static_cast<T*>(a.kv.values) + base + slot * d;
            for (i64 i = 0; i < d; ++i) store_scalar(keys + i * size, k[i]);
            for (i64 i = 0; i < d; ++i) store_scalar(values + i, v[i]);
        }
    }
}

// sum[i] += key i of tokens [first, last) of one page, rotated back where the step says so.
template <class T>
static void add_keys(const AppendArgs& a, const T* keys, i64 slot, i64 token, i64 count, double* sum) {
    const i64 half = a.kv.d / 2;
    const i64 size = a.kv.page_size;
    if (!a.use_nope) {
        for (i64 i = 0; i < a.kv.d; ++i) {
            double total = 0;
            for (i64 t = 0; t < count; ++t) total += load_scalar(keys + i * size + slot + t);
            sum[i] += total;
        }
        return;
    }
    for (i64 t = 0; t < count; ++t) {
        for (i64 i = 0; i < half; ++i) {
            const double c = static_cast<double>(a.rotary.cos[(token + t) * half + i]);
            const double s = static_cast<double>(a.rotary.sin[(token + t) * half + i]);
            const double x = load_scalar(keys + i * size + slot + t);
            const double y = load_scalar(keys + (i + half) * size + slot + t);
            const double factor = c * c + s * s;  // the square of the attention factor
            sum[i] += (x * c + y * s) / factor;
            sum[i + half] += (y * c - x * s) / factor;
        }
    }
}

// Computes kernel j of one sequence and kv head into its slot: in the page of its last token.
template <class T>
static void compress(const AppendArgs& a, const i32* table, KernelShape k, float* store, i64 slots, i64 j,
                     i64 head) {
    const i64 d = a.kv.d;
    const i64 size = a.kv.page_size;
    const i64 last = j * k.stride + k.size - 1;
    double sum[kMaxHeadDim];
    for (i64 i = 0; i < d; ++i) sum[i] = 0;
    for (i64 token = j * k.stride; token <= last;) {
        const i64 slot = token % size;
        const i64 count = last + 1 - token < size - slot ? last + 1 - token : size - slot;
        const i64 page = table[token / size];
        const T* keys = static_cast<const T*>(a.kv.keys) + (page * a.kv.hkv + head) * d * size;
        add_keys(a, keys, slot, token, count, sum);
        token += count;
    }
    const i64 page = table[last / size];
    float* to = store + ((page * a.kv.hkv + head) * slots + last % size / k.stride) * d;
    for (i64 i = 0; i < d; ++i) to[i] = static_cast<float>(sum[i] / static_cast<double>(k.size));
}

// Kernels of a sequence that end in its new tokens: [first, last).
MC_INLINE void new_kernels(const StepView& step, i64 sequence, KernelShape k, i64* first, i64* last) {
    const i64 begin = step.cu_rows[sequence];
    const i64 end = step.cu_rows[sequence + 1];
    *first = *last = 0;
    if (begin == end) return;
    *first = num_visible(k, static_cast<i64>(step.positions[begin]) - 1);
    *last = num_visible(k, step.positions[end - 1]);
}

template <class T>
static void compress_new(Pool& pool, const AppendArgs& a, KernelShape k, float* store, i64 slots) {
    i64 total = 0;
    for (i64 s = 0; s < a.step.sequences; ++s) {
        i64 first, last;
        new_kernels(a.step, s, k, &first, &last);
        total += last - first;
    }
    auto body = [&](i64 begin, i64 end, int) {
        for (i64 item = begin; item < end; ++item) {
            i64 rest = item / a.kv.hkv;
            for (i64 s = 0; s < a.step.sequences; ++s) {
                i64 first, last;
                new_kernels(a.step, s, k, &first, &last);
                if (rest < last - first) {
                    const i32* table = a.step.page_table + s * a.step.max_pages;
                    compress<T>(a, table, k, store, slots, first + rest, item % a.kv.hkv);
                    break;
                }
                rest -= last - first;
            }
        }
    };
    parallel(pool, total * a.kv.hkv, 4, body);
}

template <class T>
static void append_as(Pool& pool, const AppendArgs& a) {
    auto body = [&](i64 begin, i64 end, int) { store_rows<T>(a, begin, end); };
    parallel(pool, a.step.n, 32, body);
    if (a.kv.kernels) compress_new<T>(pool, a, a.kernel, a.kv.kernels, a.kv.slots);
    if (a.kv.coarse) compress_new<T>(pool, a, coarse_shape(a.kernel), a.kv.coarse, a.kv.coarse_slots);
}

static void append(Pool& pool, const AppendArgs& args) {
    if (args.kv.bf16) {
        append_as<u16>(pool, args);
    } else {
        append_as<float>(pool, args);
    }
}
