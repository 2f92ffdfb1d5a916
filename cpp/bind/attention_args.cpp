// Checks of pages and rows. Everything that indexes memory is checked here: page ids, positions, and all
// lengths that must fit together.
#include "bind/attention_args.hpp"

namespace minicpm4 {
namespace {

constexpr i64 kTreeRows = 64;  // Tree.MOST
constexpr i64 kMaxLength = i64(1) << 24;  // of any setting in tokens or blocks

// Checks a setting that kernels divide by or count with.
i64 setting(i64 value, const char* name, i64 low) { return checked_size(value, name, low, kMaxLength); }

KeyShape key_shape(i64 size, i64 stride, i64 page_size) {
    setting(stride, "kernel_stride", 1);
    setting(size, "kernel_size", 1);
    if (size % stride != 0 || page_size % stride != 0) {
        fail("kernel_size = " + std::to_string(size) + " and the page size " + std::to_string(page_size) +
             " must be multiples of kernel_stride = " + std::to_string(stride));
    }
    return {size, stride};
}

i64 coarse_slots(KeyShape shape, i64 page_size) {
    const i64 slots = page_size / (kCoarse * shape.stride);
    return slots > 0 ? slots : 1;
}

void check_head_dim(i64 d) {
    if (d < 2 || d > kMaxHeadDim || d % 2 != 0) {
        fail("head size " + std::to_string(d) + " is not even, or outside 2 to " +
             std::to_string(kMaxHeadDim));
    }
}

template <class T, class Array>
T* data_of(const Array& array, const char* name, std::initializer_list<i64> shape) {
    if (!has_type<T>(array.dtype())) fail(std::string(name) + " has another dtype than the other arrays of pages");
    check_shape(array, name, shape);
    return static_cast<T*>(const_cast<void*>(static_cast<const void*>(array.data())));
}

template <class T, class Array>
void plain_pages(const Array& keys, const Array& values, KvView& kv) {
    kv.keys = data_of<T>(keys, "keys", {kv.pages, kv.hkv, kv.d, kv.page_size});
    kv.values = data_of<T>(values, "values", {kv.pages, kv.hkv, kv.page_size, kv.d});
}

// Array: Output to write pages, Input to read them. Kernels that read never write.
template <class Array>
void read_pages(const Array& keys, const Array& values, const std::optional<Array>& key_scales,
                const std::optional<Array>& value_scales, KvView& kv) {
    kv.pages = length(keys, 0, "keys");
    kv.hkv = length(keys, 1, "keys");
    kv.d = length(keys, 2, "keys");
    kv.page_size = length(keys, 3, "keys");
    if (has_type<i8>(keys.dtype())) {
        if (!key_scales || !value_scales) fail("int8 keys and values need key_scales and value_scales");
        kv.kind = KvKind::int8;
        kv.keys = data_of<i8>(keys, "keys", {kv.pages, kv.hkv, kv.d, kv.page_size, 2});
        kv.d *= 2;
        if (kv.page_size % 2 != 0) fail("int8 pages need an even page size");
        kv.values = data_of<i8>(values, "values", {kv.pages, kv.hkv, kv.page_size / 2, kv.d, 2});
        kv.key_scales = data_of<float>(*key_scales, "key_scales", {kv.pages, kv.hkv, kv.page_size});
        kv.value_scales = data_of<float>(*value_scales, "value_scales", {kv.pages, kv.hkv, kv.page_size});
    } else if (has_type<u16>(keys.dtype())) {
        kv.kind = KvKind::bf16;
        plain_pages<u16>(keys, values, kv);
    } else {
        plain_pages<float>(keys, values, kv);
    }
    if (kv.hkv < 1) fail("keys has no heads");
    setting(kv.page_size, "page size", 1);
    check_head_dim(kv.d);
}

// Compressed keys `name`, of `slots` a page.
template <class Array>
Compressed read_compressed(const Array& data, const std::optional<Array>& scales, const char* name, i64 slots,
                           const KvView& kv) {
    Compressed c;
    c.slots = slots;
    if (scales) {
        c.data = data_of<int16_t>(data, name, {kv.pages, kv.hkv, slots, kv.d});
        c.scales = data_of<float>(*scales, (std::string(name) + "' scales").c_str(), {kv.pages, kv.hkv, slots});
    } else {
        c.data = data_of<float>(data, name, {kv.pages, kv.hkv, slots, kv.d});
    }
    return c;
}

// Trees of drafts: a row's ancestors are itself and those of its parent, and its place is as many after the text.
void read_tree(const Input& ancestors, const Input& angles, StepView& step) {
    step.ancestors = input<u64>(ancestors, "ancestors", {step.n});
    step.angles = input<i32>(angles, "angles", {step.n});
    for (i64 s = 0; s < step.sequences; ++s) {
        const i64 first = step.cu_rows[s];
        if (step.cu_rows[s + 1] - first > kTreeRows) fail("a tree has more than " + std::to_string(kTreeRows) + " rows");
        for (i64 row = first; row < step.cu_rows[s + 1]; ++row) {
            const std::string name = "row " + std::to_string(row - first) + " of a tree";
            const u64 before = step.ancestors[row] ^ u64(1) << (row - first);
            if (before >> (row - first) != 0) fail("ancestors of " + name + " are not itself and earlier rows");
            i64 parent = row;
            i64 place = step.positions[first];
            for (i64 other = first; other < row; ++other) {
                if ((before >> (other - first) & 1) == 0) continue;
                parent = other;
                ++place;
            }
            if (parent < row && step.ancestors[parent] != before) fail("ancestors of " + name + " are no path");
            if (step.angles[row] != place) fail("positions of a tree: " + name + " is not " + std::to_string(place));
        }
    }
}

// The step's rows; every page of every token up to the last row of a sequence must exist.
StepView read_step(const Rows& rows, const KvView& kv) {
    StepView step;
    step.n = length(rows.positions, 0, "positions");
    step.sequences = length(rows.page_table, 0, "page_table");
    step.max_pages = length(rows.page_table, 1, "page_table");
    step.positions = step.angles = input<i32>(rows.positions, "positions", {step.n});
    step.cu_rows = input<i32>(rows.cu_rows, "cu_rows", {step.sequences + 1});
    step.page_table = input<i32>(rows.page_table, "page_table", {step.sequences, step.max_pages});
    const i32* cu = step.cu_rows;
    if (cu[0] != 0 || cu[step.sequences] != step.n) fail("cu_rows does not run from 0 to the number of rows");
    for (i64 s = 0; s < step.sequences; ++s) {
        if (cu[s + 1] < cu[s]) fail("cu_rows is not ascending");
        if (cu[s + 1] > step.n) fail("cu_rows is beyond the number of rows");
    }
    for (i64 s = 0; s < step.sequences; ++s) {
        if (cu[s + 1] == cu[s]) continue;
        const i64 first = step.positions[cu[s]];
        for (i64 row = cu[s]; row < cu[s + 1]; ++row) {
            if (step.positions[row] < 0 || step.positions[row] != first + (row - cu[s])) {
                fail("positions of a sequence are negative or not consecutive");
            }
        }
        const i64 pages = step.positions[cu[s + 1] - 1] / kv.page_size + 1;
        if (pages > step.max_pages) {
            fail("page_table has " + std::to_string(step.max_pages) + " pages for a sequence that needs " +
                 std::to_string(pages));
        }
        check_range(step.page_table + s * step.max_pages, pages, 0, kv.pages, "page_table");
    }
    if (rows.ancestors.has_value() != rows.angles.has_value()) fail("ancestors and angles go together");
    if (rows.ancestors) read_tree(*rows.ancestors, *rows.angles, step);
    return step;
}

void check_heads(i64 hq, const KvView& kv) {
    if (kv.hkv < 1 || hq < 1 || hq % kv.hkv != 0) {
        fail("q has " + std::to_string(hq) + " heads for " + std::to_string(kv.hkv) + " of the pages");
    }
}

}  // namespace

RotaryView rotary_of(const Rows& rows, const StepView& step, i64 d) {
    RotaryView rotary;
    rotary.rows = length(rows.cos, 0, "cos");
    rotary.cos = input<float>(rows.cos, "cos", {rotary.rows, d / 2});
    rotary.sin = input<float>(rows.sin, "sin", {rotary.rows, d / 2});
    check_range(step.angles, step.n, 0, rotary.rows, "positions (rows of cos and sin)");
    return rotary;
}

AppendArgs append_args(const Pages& pages, const Rows& rows) {
    AppendArgs args;
    read_pages(pages.keys, pages.values, pages.key_scales, pages.value_scales, args.kv);
    KvView& kv = args.kv;
    args.step = read_step(rows, kv);
    args.use_nope = rows.use_nope;
    // Without a sparse config there is nothing to compress with, whatever the pages have room for; drafts of a tree
    // do not follow one another.
    if (!rows.sparse || args.step.ancestors || !(pages.compressed || pages.coarse)) return args;
    args.key_shape = key_shape(rows.kernel_size, rows.kernel_stride, kv.page_size);
    if (rows.use_nope) args.rotary = rotary_of(rows, args.step, kv.d);
    if (pages.compressed) {
        kv.compressed = read_compressed(*pages.compressed, pages.compressed_scales, "compressed",
                                     kv.page_size / rows.kernel_stride, kv);
    }
    if (pages.coarse) {
        kv.coarse = read_compressed(*pages.coarse, pages.coarse_scales, "coarse",
                                    coarse_slots(args.key_shape, kv.page_size), kv);
    }
    return args;
}

SelectArgs select_args(const Pages& pages, const Rows& rows, const float* q, i64 hq) {
    if (!rows.sparse || !pages.compressed) fail("select needs sparse settings, and compressed keys in the pages");
    SelectArgs args;
    read_pages(pages.keys, pages.values, pages.key_scales, pages.value_scales, args.kv);
    KvView& kv = args.kv;
    if (rows.block_size != kv.page_size) {
        fail("block_size = " + std::to_string(rows.block_size) + " for pages of " + std::to_string(kv.page_size) +
             " tokens");
    }
    args.key_shape = key_shape(rows.kernel_size, rows.kernel_stride, kv.page_size);
    kv.compressed = read_compressed(*pages.compressed, pages.compressed_scales, "compressed",
                                 kv.page_size / rows.kernel_stride, kv);
    if (rows.lse_approx) {
        if (!pages.coarse) fail("lse_approx needs the pages' coarse compressed keys");
        kv.coarse = read_compressed(*pages.coarse, pages.coarse_scales, "coarse",
                                    coarse_slots(args.key_shape, kv.page_size), kv);
        if ((kv.compressed.scales == nullptr) != (kv.coarse.scales == nullptr)) {
            fail("coarse must be of the type of compressed");
        }
    }
    args.step = read_step(rows, kv);
    if (rows.use_nope) args.rotary = rotary_of(rows, args.step, kv.d);
    args.q = q;
    args.hq = hq;
    check_heads(hq, kv);
    args.topk = setting(rows.topk, "topk", 1);
    args.init_blocks = setting(rows.init_blocks, "init_blocks", 0);
    args.local_blocks = setting(rows.local_blocks, "local_blocks", 1);
    args.dense_len = rows.dense_len;
    if (args.init_blocks > args.topk) fail("init_blocks is above topk, which counts them");
    args.lse_approx = rows.lse_approx;
    args.use_nope = rows.use_nope;
    return args;
}

AttendArgs attend_args(const Pages& pages, const Rows& rows, const float* q, i64 hq) {
    AttendArgs args;
    read_pages(pages.keys, pages.values, pages.key_scales, pages.value_scales, args.kv);
    args.kv.window = checked_size(pages.window, "window");
    args.step = read_step(rows, args.kv);
    args.q = q;
    args.hq = hq;
    check_heads(hq, args.kv);
    return args;
}

const float* queries(const Input& q, const Pages& pages, const Rows& rows) {
    const i64 d = length(pages.keys, 2, "keys") * (has_type<i8>(pages.keys.dtype()) ? 2 : 1);
    return input<float>(q, "q", {length(rows.positions, 0, "positions"), length(q, 1, "q"), d});
}

}  // namespace minicpm4
