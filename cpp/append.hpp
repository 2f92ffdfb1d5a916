// Storing new keys and values in pages, and the compressed keys that end in them.
// Included by each instruction set's unit, inside its namespace.

static constexpr i64 kMaxHeadDim = 512;
static constexpr float kTiny = 1e-30F;  // keys, values, queries and norms below this become codes 0
static constexpr double kCodeNorm = 32766;  // of int16 codes: no product of two leaves 32 bits

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

// How one (page, kv head) is written and its keys are read: `at` counts pages and heads together.
template <class T>
struct PlainPage {
    T* keys;    // (d, P)
    T* values;  // (P, d)
    i64 d;
    i64 size;

    PlainPage(const KvView& kv, i64 at)
        : keys(static_cast<T*>(kv.keys) + at * kv.d * kv.page_size),
          values(static_cast<T*>(kv.values) + at * kv.d * kv.page_size),
          d(kv.d),
          size(kv.page_size) {}

    void put(i64 slot, const float* k, const float* v) const {
        for (i64 i = 0; i < d; ++i) store_scalar(keys + i * size + slot, k[i]);
        for (i64 i = 0; i < d; ++i) store_scalar(values + slot * d + i, v[i]);
    }
    double key(i64 i, i64 slot) const { return load_scalar(keys + i * size + slot); }
};

// Calls put(i, code) for every number of x (d); returns the scale: NaN, and codes 0, where one is not finite.
template <class Put>
static float quantise(const float* x, i64 d, Put put) {
    float most = 0.0F;
    bool known = true;
    for (i64 i = 0; i < d; ++i) {
        const float size = fabsf(x[i]);
        known = known && size < INFINITY;
        most = size > most ? size : most;
    }
    const float inverse = known && most >= kTiny ? 127.0F / most : 0.0F;
    for (i64 i = 0; i < d; ++i) put(i, static_cast<i8>(known ? lrintf(x[i] * inverse) : 0));
    return !known ? NAN : most >= kTiny ? most / 127.0F : 0.0F;
}

struct Int8Page {
    i8* keys;    // (d / 2, P, 2)
    i8* values;  // (P / 2, d, 2)
    float* key_scales;
    float* value_scales;
    i64 d;
    i64 size;

    Int8Page(const KvView& kv, i64 at)
        : keys(static_cast<i8*>(kv.keys) + at * kv.d * kv.page_size),
          values(static_cast<i8*>(kv.values) + at * kv.d * kv.page_size),
          key_scales(kv.key_scales + at * kv.page_size),
          value_scales(kv.value_scales + at * kv.page_size),
          d(kv.d),
          size(kv.page_size) {}

    void put(i64 slot, const float* k, const float* v) const {
        key_scales[slot] = quantise(k, d, [&](i64 i, i8 x) { keys[(i / 2 * size + slot) * 2 + i % 2] = x; });
        value_scales[slot] =
            quantise(v, d, [&](i64 i, i8 x) { values[(slot / 2 * d + i) * 2 + slot % 2] = x; });
    }
    double key(i64 i, i64 slot) const {
        return static_cast<double>(keys[(i / 2 * size + slot) * 2 + i % 2]) *
               static_cast<double>(key_scales[slot]);
    }
};

template <class Page>
static void store_rows(const AppendArgs& a, i64 begin, i64 end) {
    for (i64 row = begin; row < end; ++row) {
        const i64 position = a.step.positions[row];
        const i32* table = a.step.page_table + sequence_of(a.step, row) * a.step.max_pages;
        const i64 page = table[position / a.kv.page_size];
        for (i64 h = 0; h < a.kv.hkv; ++h) {
            const i64 from = (row * a.kv.hkv + h) * a.kv.d;
            Page(a.kv, page * a.kv.hkv + h).put(position % a.kv.page_size, a.k + from, a.v + from);
        }
    }
}

// sum[i] += key i of `count` tokens from `token`, at `slot` of a page, rotated back where the step says so.
template <class Page>
static void add_keys(const AppendArgs& a, const Page& page, i64 slot, i64 token, i64 count, double* sum) {
    const i64 half = a.kv.d / 2;
    if (!a.use_nope) {
        for (i64 i = 0; i < a.kv.d; ++i) {
            double total = 0;
            for (i64 t = 0; t < count; ++t) total += page.key(i, slot + t);
            sum[i] += total;
        }
        return;
    }
    for (i64 t = 0; t < count; ++t) {
        for (i64 i = 0; i < half; ++i) {
            const double c = static_cast<double>(a.rotary.cos[(token + t) * half + i]);
            const double s = static_cast<double>(a.rotary.sin[(token + t) * half + i]);
            const double x = page.key(i, slot + t);
            const double y = page.key(i + half, slot + t);
            const double factor = c * c + s * s;  // the square of the attention factor
            sum[i] += (x * c + y * s) / factor;
            sum[i + half] += (y * c - x * s) / factor;
        }
    }
}

// Stores a compressed key as number `at` (pages, heads and slots counted together).
static void store_kernel(const Compressed& c, i64 at, const double* x, i64 d) {
    if (!c.scales) {
        for (i64 i = 0; i < d; ++i) static_cast<float*>(c.data)[at * d + i] = static_cast<float>(x[i]);
        return;
    }
    double squares = 0;
    for (i64 i = 0; i < d; ++i) squares += x[i] * x[i];
    const double norm = sqrt(squares);
    const bool known = norm < static_cast<double>(INFINITY);
    const double inverse = known && norm >= static_cast<double>(kTiny) ? kCodeNorm / norm : 0;
    int16_t* codes = static_cast<int16_t*>(c.data) + at * d;
    for (i64 i = 0; i < d; ++i) codes[i] = static_cast<int16_t>(known ? lrint(x[i] * inverse) : 0);
    c.scales[at] = static_cast<float>(!known ? static_cast<double>(NAN) : inverse > 0 ? norm / kCodeNorm : 0);
}

// Computes kernel j of one sequence and kv head into its slot: in the page of its last token.
template <class Page>
static void compress(const AppendArgs& a, const i32* table, KernelShape k, const Compressed& store, i64 j,
                     i64 head) {
    const i64 d = a.kv.d;
    const i64 size = a.kv.page_size;
    const i64 last = j * k.stride + k.size - 1;
    double sum[kMaxHeadDim];
    for (i64 i = 0; i < d; ++i) sum[i] = 0;
    for (i64 token = j * k.stride; token <= last;) {
        const i64 slot = token % size;
        const i64 count = last + 1 - token < size - slot ? last + 1 - token : size - slot;
        add_keys(a, Page(a.kv, table[token / size] * a.kv.hkv + head), slot, token, count, sum);
        token += count;
    }
    for (i64 i = 0; i < d; ++i) sum[i] /= static_cast<double>(k.size);
    const i64 home = table[last / size] * a.kv.hkv + head;
    store_kernel(store, home * store.slots + last % size / k.stride, sum, d);
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

template <class Page>
static void compress_new(Pool& pool, const AppendArgs& a, KernelShape k, const Compressed& store) {
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
                    compress<Page>(a, table, k, store, first + rest, item % a.kv.hkv);
                    break;
                }
                rest -= last - first;
            }
        }
    };
    parallel(pool, total * a.kv.hkv, 4, body);
}

template <class Page>
static void append_as(Pool& pool, const AppendArgs& a) {
    auto body = [&](i64 begin, i64 end, int) { store_rows<Page>(a, begin, end); };
    parallel(pool, a.step.n, 32, body);
    if (a.kv.kernels.data) compress_new<Page>(pool, a, a.kernel, a.kv.kernels);
    if (a.kv.coarse.data) compress_new<Page>(pool, a, coarse_shape(a.kernel), a.kv.coarse);
}

static void append(Pool& pool, const AppendArgs& args) {
    if (args.kv.kind == KvKind::int8) {
        append_as<Int8Page>(pool, args);
    } else if (args.kv.kind == KvKind::bf16) {
        append_as<PlainPage<u16>>(pool, args);
    } else {
        append_as<PlainPage<float>>(pool, args);
    }
}
