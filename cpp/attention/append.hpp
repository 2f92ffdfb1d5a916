// Storing new keys and values in pages, and the compressed keys that end in them.
// Included by each instruction set's unit, inside its namespace.

static constexpr float kTiny = 1e-30F;  // keys, values, queries and norms below this become codes 0
static constexpr double kCodeNorm = 32766;  // of int16 codes: no product of two leaves 32 bits

#include "attention/paths.hpp"

// How many compressed keys a query at `position` sees: those with j * stride + size <= position + 1.
MC_INLINE i64 num_visible(KeyShape k, i64 position) {
    return position + 1 < k.size ? 0 : (position + 1 - k.size) / k.stride + 1;
}

MC_INLINE KeyShape coarse_shape(KeyShape k) { return {k.size * kCoarse, k.stride * kCoarse}; }

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
    void copy(i64 slot, const PlainPage& other, i64 from) const {
        for (i64 i = 0; i < d; ++i) keys[i * size + slot] = other.keys[i * size + from];
        for (i64 i = 0; i < d; ++i) values[slot * d + i] = other.values[from * d + i];
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
    void copy(i64 slot, const Int8Page& other, i64 from) const {
        key_scales[slot] = other.key_scales[from];
        value_scales[slot] = other.value_scales[from];
        for (i64 i = 0; i < d; ++i) {
            keys[(i / 2 * size + slot) * 2 + i % 2] = other.keys[(i / 2 * size + from) * 2 + i % 2];
            values[(slot / 2 * d + i) * 2 + slot % 2] = other.values[(from / 2 * d + i) * 2 + from % 2];
        }
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

// Of each of the (sequence, kv head) pairs [begin, end): keys and values of its rows from where they lie to their
// positions, in order: then none is overwritten before it is read, as no row moves up.
template <class Page>
static void move_rows(const AppendArgs& a, i64 begin, i64 end) {
    for (i64 item = begin; item < end; ++item) {
        const i64 s = item / a.kv.hkv;
        const i32* table = a.step.page_table + s * a.step.max_pages;
        const auto page = [&](i64 t) { return Page(a.kv, table[t / a.kv.page_size] * a.kv.hkv + item % a.kv.hkv); };
        for (i64 row = a.step.cu_rows[s]; row < a.step.cu_rows[s + 1]; ++row) {
            const i64 from = a.sources[row], to = a.step.positions[row];
            if (from != to) page(to).copy(to % a.kv.page_size, page(from), from % a.kv.page_size);
        }
    }
}

// sum[i] += key i of token number `token`, at `slot` of a page, rotated back.
template <class Page>
MC_INLINE void add_turned_back(const RotaryView& rotary, const Page& page, i64 slot, i64 token, double* sum) {
    const i64 half = page.d / 2;
    for (i64 i = 0; i < half; ++i) {
        const double c = static_cast<double>(rotary.cos[token * half + i]);
        const double s = static_cast<double>(rotary.sin[token * half + i]);
        const double x = page.key(i, slot);
        const double y = page.key(i + half, slot);
        const double factor = c * c + s * s;  // the square of the attention factor
        sum[i] += (x * c + y * s) / factor;
        sum[i + half] += (y * c - x * s) / factor;
    }
}

// sum[i] += key i of `count` tokens from `token`, at `slot` of a page, rotated back where the step says so.
template <class Page>
static void add_keys(const AppendArgs& a, const Page& page, i64 slot, i64 token, i64 count, double* sum) {
    if (a.use_nope) {
        for (i64 t = 0; t < count; ++t) add_turned_back(a.rotary, page, slot + t, token + t, sum);
        return;
    }
    for (i64 i = 0; i < a.kv.d; ++i) {
        double total = 0;
        for (i64 t = 0; t < count; ++t) total += page.key(i, slot + t);
        sum[i] += total;
    }
}

// The same bits of tokens from `token` on of a path, which would be in one page: those lie in any.
template <class Page>
static void add_path_keys(const SelectArgs& a, const i32* table, i64 head, const Path& path, i64 token, i64 count,
                          double* sum) {
    double total[kMaxHeadDim];
    for (i64 i = 0; i < a.kv.d; ++i) total[i] = 0;
    for (i64 t = token; t < token + count; ++t) {
        const i64 at = path.position(t);
        const Page page(a.kv, table[at / a.kv.page_size] * a.kv.hkv + head);
        const i64 slot = at % a.kv.page_size;
        if (a.use_nope) {
            add_turned_back(a.rotary, page, slot, t, sum);
        } else {
            for (i64 i = 0; i < a.kv.d; ++i) total[i] += page.key(i, slot);
        }
    }
    if (a.use_nope) return;
    for (i64 i = 0; i < a.kv.d; ++i) sum[i] += total[i];
}

// Stores a compressed key as number `at` (pages, heads and slots counted together).
static void store_compressed(const Compressed& c, i64 at, const double* x, i64 d) {
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

// The mean of the keys (d) that compressed key j covers; add(token, count, sum) adds those of tokens of one page.
template <class Add>
MC_INLINE void mean_of_keys(const KvView& kv, KeyShape k, i64 j, Add add, double* sum) {
    const i64 last = j * k.stride + k.size - 1;
    for (i64 i = 0; i < kv.d; ++i) sum[i] = 0;
    for (i64 token = j * k.stride; token <= last;) {
        const i64 rest = kv.page_size - token % kv.page_size;
        const i64 count = last + 1 - token < rest ? last + 1 - token : rest;
        add(token, count, sum);
        token += count;
    }
    for (i64 i = 0; i < kv.d; ++i) sum[i] /= static_cast<double>(k.size);
}

// Computes compressed key j of one sequence and kv head into its slot: in the page of its last token.
template <class Page>
static void compress(const AppendArgs& a, const i32* table, KeyShape k, const Compressed& store, i64 j,
                     i64 head) {
    const i64 size = a.kv.page_size;
    const i64 last = j * k.stride + k.size - 1;
    double sum[kMaxHeadDim];
    const auto add = [&](i64 token, i64 count, double* to) {
        add_keys(a, Page(a.kv, table[token / size] * a.kv.hkv + head), token % size, token, count, to);
    };
    mean_of_keys(a.kv, k, j, add, sum);
    const i64 home = table[last / size] * a.kv.hkv + head;
    store_compressed(store, home * store.slots + last % size / k.stride, sum, a.kv.d);
}

// Of each of the (row, kv head) pairs [begin, end) of a step over trees the compressed key that ends in the row on its
// path, if one does: as number row * hkv + head.
template <class Page>
static void compress_paths(const SelectArgs& a, KeyShape k, const Compressed& store, i64 begin, i64 end) {
    for (i64 item = begin; item < end; ++item) {
        const i64 row = item / a.kv.hkv, head = item % a.kv.hkv;
        const i64 begins = a.step.angles[row] + i64(1) - k.size;
        if (begins < 0 || begins % k.stride != 0) continue;
        const i64 s = sequence_of(a.step, row);
        const i32* table = a.step.page_table + s * a.step.max_pages;
        const Path path = {a.step.positions[a.step.cu_rows[s]], a.step.ancestors[row]};
        double sum[kMaxHeadDim];
        const auto add = [&](i64 token, i64 count, double* to) {
            add_path_keys<Page>(a, table, head, path, token, count, to);
        };
        mean_of_keys(a.kv, k, begins / k.stride, add, sum);
        store_compressed(store, item, sum, a.kv.d);
    }
}

// Compressed keys of a sequence that end in its new tokens: [first, last).
MC_INLINE void new_compressed(const StepView& step, i64 sequence, KeyShape k, i64* first, i64* last) {
    const i64 begin = step.cu_rows[sequence];
    const i64 end = step.cu_rows[sequence + 1];
    *first = *last = 0;
    if (begin == end) return;
    *first = num_visible(k, static_cast<i64>(step.positions[begin]) - 1);
    *last = num_visible(k, step.positions[end - 1]);
}

template <class Page>
static void compress_new(Pool& pool, const AppendArgs& a, KeyShape k, const Compressed& store) {
    i64 total = 0;
    for (i64 s = 0; s < a.step.sequences; ++s) {
        i64 first, last;
        new_compressed(a.step, s, k, &first, &last);
        total += last - first;
    }
    auto body = [&](i64 begin, i64 end, int) {
        for (i64 item = begin; item < end; ++item) {
            i64 rest = item / a.kv.hkv;
            for (i64 s = 0; s < a.step.sequences; ++s) {
                i64 first, last;
                new_compressed(a.step, s, k, &first, &last);
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
    auto store = [&](i64 begin, i64 end, int) { store_rows<Page>(a, begin, end); };
    auto move = [&](i64 begin, i64 end, int) { move_rows<Page>(a, begin, end); };
    if (a.sources) {
        parallel(pool, a.step.sequences * a.kv.hkv, 1, move);
    } else {
        parallel(pool, a.step.n, 32, store);
    }
    if (a.kv.compressed.data) compress_new<Page>(pool, a, a.key_shape, a.kv.compressed);
    if (a.kv.coarse.data) compress_new<Page>(pool, a, coarse_shape(a.key_shape), a.kv.coarse);
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
