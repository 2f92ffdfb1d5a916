// append, select and attend on sequences in scattered pages, and on trees of drafts, against the scalar table.
#include <algorithm>
#include <cstring>

#include "common.hpp"

namespace minicpm4 {
namespace {

struct Shape {
    i64 hq, hkv, d, page_size;
    KvKind kind;
    bool small_codes;  // compressed keys of 16 bits
    bool lse_approx, use_nope;
};

constexpr Shape kShapes[] = {
    {4, 2, 16, 16, KvKind::f32, false, false, false}, {8, 1, 64, 64, KvKind::bf16, true, false, false},
    {6, 2, 24, 32, KvKind::bf16, false, true, false}, {2, 2, 32, 16, KvKind::f32, true, true, true},
    {4, 2, 32, 16, KvKind::int8, true, false, false}, {16, 1, 128, 16, KvKind::bf16, false, false, true},
    {6, 2, 64, 64, KvKind::int8, true, true, false},
};

// Two sequences of random keys, values and queries, and pages full of NaN.
struct Paged {
    Shape shape;
    i64 lengths[2];
    i64 max_pages, pages;
    std::vector<i32> page_table;
    std::vector<float> q, k, v, cos, sin;

    Paged(Random& random, const Shape& s, i64 first, i64 second) : shape(s), lengths{first, second} {
        const i64 needed[2] = {(first - 1) / s.page_size + 1, (second - 1) / s.page_size + 1};
        max_pages = std::max(needed[0], needed[1]);
        pages = needed[0] + needed[1] + 2;
        std::vector<i32> ids(static_cast<size_t>(pages));
        for (i64 i = 0; i < pages; ++i) {
            ids[static_cast<size_t>(i)] = static_cast<i32>(i);
            std::swap(ids[static_cast<size_t>(i)], ids[static_cast<size_t>(random.below(i + 1))]);
        }
        page_table.assign(static_cast<size_t>(2 * max_pages), -1);
        std::copy_n(ids.begin(), needed[0], page_table.begin());
        std::copy_n(ids.begin() + needed[0], needed[1], page_table.begin() + max_pages);
        const i64 n = first + second;
        q = random.normals(n * s.hq * s.d);
        k = random.normals(n * s.hkv * s.d);
        v = random.normals(n * s.hkv * s.d);
        for (i64 i = 0; i < std::max(first, second) * s.d / 2; ++i) {
            const float angle = 6.0F * random.uniform();
            cos.push_back(std::cos(angle));
            sin.push_back(std::sin(angle));
        }
    }
};

// What one table makes of them. Pages have room for float32, whatever they hold.
struct Outcome {
    std::vector<float> keys, values, key_scales, value_scales;
    std::vector<float> compressed, coarse, compressed_scales, coarse_scales, out;
    std::vector<i32> blocks, counts;
    KvView kv;

    explicit Outcome(const Paged& p) {
        const Shape& s = p.shape;
        kv.hkv = s.hkv;
        kv.d = s.d;
        kv.page_size = s.page_size;
        kv.kind = s.kind;
        kv.pages = p.pages;
        kv.keys = fill(keys, s.d * s.page_size);
        kv.values = fill(values, s.d * s.page_size);
        if (s.kind == KvKind::int8) {
            kv.key_scales = fill(key_scales, s.page_size);
            kv.value_scales = fill(value_scales, s.page_size);
        }
        kv.compressed = store_of(s, s.page_size / 4, compressed, compressed_scales);
        if (s.lse_approx) kv.coarse = store_of(s, s.page_size / 16, coarse, coarse_scales);
    }
    Outcome(const Outcome&) = delete;
    Outcome& operator=(const Outcome&) = delete;

private:
    float* fill(std::vector<float>& v, i64 per_head) {
        v.assign(static_cast<size_t>(kv.pages * kv.hkv * per_head), NAN);
        return v.data();
    }
    Compressed store_of(const Shape& s, i64 slots, std::vector<float>& data, std::vector<float>& scales) {
        Compressed c;
        c.slots = slots;
        c.data = fill(data, slots * s.d);
        c.scales = s.small_codes ? fill(scales, slots) : nullptr;
        return c;
    }
};

// Rows from `first` and `second` on of the two sequences.
struct Rows {
    std::vector<i32> positions, angles, cu_rows{0}, sources;
    std::vector<u64> ancestors;
    StepView view;
    std::vector<float> q, k, v;

    Rows(const Paged& p, i64 first, i64 second) {
        i64 start = 0;
        const auto take = [&](std::vector<float>& to, const std::vector<float>& from, i64 width, i64 length) {
            const auto begin = from.begin() + start * width;
            to.insert(to.end(), begin + first * width, begin + length * width);
        };
        for (const i64 length : p.lengths) {
            if (start > 0) first = second;
            for (i64 i = first; i < length; ++i) positions.push_back(static_cast<i32>(i));
            cu_rows.push_back(static_cast<i32>(positions.size()));
            take(q, p.q, p.shape.hq * p.shape.d, length);
            take(k, p.k, p.shape.hkv * p.shape.d, length);
            take(v, p.v, p.shape.hkv * p.shape.d, length);
            start += length;
        }
        view.positions = view.angles = positions.data();
        view.cu_rows = cu_rows.data();
        view.page_table = p.page_table.data();
        view.n = static_cast<i64>(positions.size());
        view.sequences = 2;
        view.max_pages = p.max_pages;
    }
    Rows(const Rows&) = delete;
    Rows& operator=(const Rows&) = delete;

    // Makes them two trees of drafts; each follows one of the five before, or the text.
    void grow_trees(Random& random) {
        for (i64 row = 0; row < view.n; ++row) {
            const i64 begin = row < cu_rows[1] ? 0 : cu_rows[1];
            const i64 own = row - begin;
            const i64 parent = own - 1 - random.below(std::min<i64>(5, own + 1));
            const u64 before = parent < 0 ? 0 : ancestors[static_cast<size_t>(begin + parent)];
            ancestors.push_back(before | u64(1) << own);
            i32 depth = 0;
            for (i64 b = 0; b < own; ++b) depth += static_cast<i32>(before >> b & 1);
            angles.push_back(positions[static_cast<size_t>(begin)] + depth);
        }
        view.ancestors = ancestors.data();
        view.angles = angles.data();
    }

    // Keeps of each tree the path to its last row, as rows that follow the text and lie elsewhere.
    void accept(const Rows& trees) {
        positions.clear();
        cu_rows = {0};
        for (size_t j = 1; j < trees.cu_rows.size(); ++j) {
            const size_t begin = static_cast<size_t>(trees.cu_rows[j - 1]), end = static_cast<size_t>(trees.cu_rows[j]);
            for (size_t row = begin; row < end; ++row) {
                if ((trees.ancestors[end - 1] >> (row - begin) & 1) == 0) continue;
                positions.push_back(trees.angles[row]);
                sources.push_back(trees.positions[row]);
            }
            cu_rows.push_back(static_cast<i32>(positions.size()));
        }
        view.positions = view.angles = positions.data();
        view.cu_rows = cu_rows.data();
        view.n = static_cast<i64>(positions.size());
    }
};

constexpr i64 kTopk = 4, kLocal = 2;

void append(Pool& pool, const KernelTable& table, const Paged& p, const Rows& rows, Outcome& o) {
    AppendArgs args;
    args.k = rows.k.data();
    args.v = rows.v.data();
    args.kv = o.kv;
    if (rows.view.ancestors != nullptr) args.kv.compressed = args.kv.coarse = {};
    if (!rows.sources.empty()) args.sources = rows.sources.data();
    args.step = rows.view;
    args.rotary = {p.cos.data(), p.sin.data(), std::max(p.lengths[0], p.lengths[1])};
    args.key_shape = {8, 4};
    args.use_nope = p.shape.use_nope;
    table.attention.append(pool, args);
}

void select(Pool& pool, const KernelTable& table, const Paged& p, const Rows& rows, const KvView& kv,
            Outcome& o) {
    SelectArgs args;
    args.q = rows.q.data();
    args.hq = p.shape.hq;
    args.kv = kv;
    args.step = rows.view;
    args.rotary = {p.cos.data(), p.sin.data(), std::max(p.lengths[0], p.lengths[1])};
    args.key_shape = {8, 4};
    args.init_blocks = 1;
    args.local_blocks = kLocal;
    args.topk = kTopk;
    args.dense_len = 40;
    args.lse_approx = p.shape.lse_approx;
    args.use_nope = p.shape.use_nope;
    o.blocks.assign(static_cast<size_t>(rows.view.n * p.shape.hkv * (kTopk + kLocal)), -7);
    o.counts.assign(static_cast<size_t>(rows.view.n * p.shape.hkv), -7);
    args.blocks = o.blocks.data();
    args.counts = o.counts.data();
    table.attention.select(pool, args);
}

void attend(Pool& pool, const KernelTable& table, const Paged& p, const Rows& rows, const KvView& kv,
            const Outcome* chosen, Outcome& o) {
    AttendArgs args;
    args.q = rows.q.data();
    args.hq = p.shape.hq;
    args.kv = kv;
    args.step = rows.view;
    if (chosen != nullptr) {
        args.blocks = chosen->blocks.data();
        args.counts = chosen->counts.data();
        args.budget = kTopk + kLocal;
    }
    o.out.assign(rows.q.size(), NAN);
    args.out = o.out.data();
    table.attention.attend(pool, args);
}

// Largest difference over numbers that exist in both; infinity where only one does.
float difference(const std::vector<float>& a, const std::vector<float>& b) {
    float worst = 0.0F;
    for (size_t i = 0; i < a.size(); ++i) {
        if (std::isnan(a[i]) && std::isnan(b[i])) continue;
        const float error = std::fabs(a[i] - b[i]);
        if (!(error <= worst)) worst = std::isnan(error) ? INFINITY : error;
    }
    return worst;
}

bool same_bytes(const std::vector<float>& a, const std::vector<float>& b) {
    return a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

void check_append(const Outcome& mine, const Outcome& truth, bool small, const std::string& name,
                  Report& report) {
    report.expect(same_bytes(mine.keys, truth.keys), "append, keys, " + name);
    report.expect(same_bytes(mine.values, truth.values), "append, values, " + name);
    report.expect(difference(mine.key_scales, truth.key_scales) < 1e-7F, "append, key scales, " + name);
    report.expect(difference(mine.value_scales, truth.value_scales) < 1e-7F, "append, value scales, " + name);
    report.expect(difference(mine.compressed_scales, truth.compressed_scales) < 1e-8F, "append, compressed scale, " + name);
    if (small) return;  // codes of compressed keys may differ by one
    report.expect(difference(mine.compressed, truth.compressed) < 1e-5F, "append, compressed keys, " + name);
    report.expect(difference(mine.coarse, truth.coarse) < 1e-5F, "append, coarse keys, " + name);
}

void check_rows(Pool& pool, const KernelTable& table, Report& report, const Paged& p, const Rows& rows, Outcome& mine,
                Outcome& truth, const std::string& at) {
    const KernelTable& plain = isa_scalar::table;
    // Products of 16 bits at the levels that have units for them, or where 8-bit pages ask for them.
    const std::string level = table.name;
    const bool units = level.find("bf16") != std::string::npos || level.find("amx") != std::string::npos;
    const bool small = units || p.shape.kind == KvKind::int8;
    const float allowed = small ? 2e-2F : 2e-5F;
    select(pool, table, p, rows, truth.kv, mine);
    select(pool, plain, p, rows, truth.kv, truth);
    // Integer products, of 16-bit compressed keys at that level, may settle a near tie otherwise.
    const bool exact = !small || !p.shape.small_codes;
    report.expect(mine.counts == truth.counts && (!exact || mine.blocks == truth.blocks), "select, " + at);
    attend(pool, table, p, rows, truth.kv, &truth, mine);
    attend(pool, plain, p, rows, truth.kv, &truth, truth);
    report.close(mine.out, truth.out, allowed, "attend to chosen blocks, " + at);
    attend(pool, table, p, rows, truth.kv, nullptr, mine);
    attend(pool, plain, p, rows, truth.kv, nullptr, truth);
    report.close(mine.out, truth.out, allowed, "attend to everything, " + at);
}

// Of each sequence the rows from `first` and `second` on: chosen blocks, counts and results, one row after another.
struct Bits {
    std::vector<i32> chosen;
    std::vector<float> sparse, dense;
};

Bits read(Pool& pool, const KernelTable& table, const Paged& p, const Rows& rows, Outcome& o) {
    Bits found;
    select(pool, table, p, rows, o.kv, o);
    found.chosen = o.blocks;
    found.chosen.insert(found.chosen.end(), o.counts.begin(), o.counts.end());
    attend(pool, table, p, rows, o.kv, &o, o);
    found.sparse = o.out;
    attend(pool, table, p, rows, o.kv, nullptr, o);
    found.dense = o.out;
    return found;
}

// The last rows have the same bits alone and after others, of other numbers in each sequence; with one thread and more.
void check_bits(Pool& pool, const KernelTable& table, Report& report, const Paged& p, Outcome& mine, const std::string& name) {
    Pool one(1), three(3);
    const i64 width = p.shape.hq * p.shape.d, chosen = p.shape.hkv * (kTopk + kLocal);
    const i64 firsts[][2] = {{2, 2}, {50, 9}, {p.lengths[0], 33}, {7, p.lengths[1]}};
    const Rows last(p, p.lengths[0] - 1, p.lengths[1] - 1);
    const Bits alone = read(one, table, p, last, mine);
    for (const auto& before : firsts) {
        const Rows rows(p, p.lengths[0] - before[0], p.lengths[1] - before[1]);
        for (Pool* threads : {&one, &three, &pool}) {
            const Bits all = read(*threads, table, p, rows, mine);
            for (const i64 s : {0, 1}) {
                const i64 row = rows.view.cu_rows[s + 1] - 1;
                const auto same = [&](const auto& a, const auto& b, i64 size) {
                    return std::memcmp(a.data() + s * size, b.data() + row * size, static_cast<size_t>(size) * sizeof(a[0])) == 0;
                };
                const bool equal = same(alone.chosen, all.chosen, chosen) && same(alone.sparse, all.sparse, width) &&
                                   same(alone.dense, all.dense, width);
                report.expect(equal, "the same bits beside " + std::to_string(before[0]) + " rows, " + name);
            }
        }
    }
}

void check_shape(Pool& pool, const KernelTable& table, Report& report, Random& random, const Shape& s) {
    const Paged p(random, s, 9 * s.page_size + 5, 8 * s.page_size - 3);
    Outcome mine(p), truth(p);
    const std::string name =
        "head size " + std::to_string(s.d) + ", pages of kind " + std::to_string(static_cast<int>(s.kind));
    const Rows all(p, 0, 0);
    append(pool, table, p, all, mine);
    append(pool, isa_scalar::table, p, all, truth);
    check_append(mine, truth, s.small_codes, name, report);
    const i64 shortest = p.lengths[1];
    for (const i64 first : {shortest - 1, shortest - 6, shortest - 40}) {
        const Rows rows(p, first, first);
        check_rows(pool, table, report, p, rows, mine, truth, name + ", rows from " + std::to_string(first));
    }
    check_bits(pool, table, report, p, mine, name);
    Rows trees(p, p.lengths[0] - 64, shortest - 23), kept(p, 0, 0);
    trees.grow_trees(random);
    check_rows(pool, table, report, p, trees, mine, truth, name + ", trees");
    kept.accept(trees);
    append(pool, table, p, kept, mine);
    append(pool, isa_scalar::table, p, kept, truth);
    check_append(mine, truth, s.small_codes, name + ", settled", report);
}

}  // namespace

void check_attention(Pool& pool, const KernelTable& table, Report& report) {
    Random random(3);
    for (const Shape& shape : kShapes) check_shape(pool, table, report, random, shape);
}

}  // namespace minicpm4
