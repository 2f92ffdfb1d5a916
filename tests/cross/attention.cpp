// append, select and attend on sequences in scattered pages, against the scalar table.
#include <algorithm>
#include <cstring>

#include "common.hpp"

namespace minicpm4 {
namespace {

struct Shape {
    i64 hq, hkv, d, page_size;
    KvKind kind;
    bool small_kernels;  // compressed keys of 16 bits
    bool lse_approx, use_nope;
};

constexpr Shape kShapes[] = {
    {4, 2, 16, 16, KvKind::f32, false, false, false}, {8, 1, 64, 64, KvKind::bf16, true, false, false},
    {6, 2, 24, 32, KvKind::bf16, false, true, false}, {2, 2, 32, 16, KvKind::f32, true, true, true},
    {4, 2, 32, 16, KvKind::int8, true, false, false}, {16, 1, 128, 16, KvKind::bf16, false, false, true},
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
    std::vector<float> kernels, coarse, kernel_scales, coarse_scales, out;
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
        kv.kernels = compressed(s, s.page_size / 4, kernels, kernel_scales);
        if (s.lse_approx) kv.coarse = compressed(s, s.page_size / 16, coarse, coarse_scales);
    }
    Outcome(const Outcome&) = delete;
    Outcome& operator=(const Outcome&) = delete;

private:
    float* fill(std::vector<float>& v, i64 per_head) {
        v.assign(static_cast<size_t>(kv.pages * kv.hkv * per_head), NAN);
        return v.data();
    }
    Compressed compressed(const Shape& s, i64 slots, std::vector<float>& data, std::vector<float>& scales) {
        Compressed c;
        c.slots = slots;
        c.data = fill(data, slots * s.d);
        c.scales = s.small_kernels ? fill(scales, slots) : nullptr;
        return c;
    }
};

// Rows [first, length) of both sequences.
struct Rows {
    std::vector<i32> positions, cu_rows{0};
    StepView view;
    std::vector<float> q, k, v;

    Rows(const Paged& p, i64 first) {
        i64 start = 0;
        const auto take = [&](std::vector<float>& to, const std::vector<float>& from, i64 width, i64 length) {
            const auto begin = from.begin() + start * width;
            to.insert(to.end(), begin + first * width, begin + length * width);
        };
        for (const i64 length : p.lengths) {
            for (i64 i = first; i < length; ++i) positions.push_back(static_cast<i32>(i));
            cu_rows.push_back(static_cast<i32>(positions.size()));
            take(q, p.q, p.shape.hq * p.shape.d, length);
            take(k, p.k, p.shape.hkv * p.shape.d, length);
            take(v, p.v, p.shape.hkv * p.shape.d, length);
            start += length;
        }
        view.positions = positions.data();
        view.cu_rows = cu_rows.data();
        view.page_table = p.page_table.data();
        view.n = static_cast<i64>(positions.size());
        view.sequences = 2;
        view.max_pages = p.max_pages;
    }
};

constexpr i64 kTopk = 4, kLocal = 2;

void append(Pool& pool, const KernelTable& table, const Paged& p, const Rows& rows, Outcome& o) {
    AppendArgs args;
    args.k = rows.k.data();
    args.v = rows.v.data();
    args.kv = o.kv;
    args.step = rows.view;
    args.rotary = {p.cos.data(), p.sin.data(), std::max(p.lengths[0], p.lengths[1])};
    args.kernel = {8, 4};
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
    args.kernel = {8, 4};
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
    report.expect(difference(mine.kernel_scales, truth.kernel_scales) < 1e-8F, "append, kernel scale, " + name);
    if (small) return;  // codes of kernels may differ by one
    report.expect(difference(mine.kernels, truth.kernels) < 1e-5F, "append, compressed keys, " + name);
    report.expect(difference(mine.coarse, truth.coarse) < 1e-5F, "append, coarse keys, " + name);
}

void check_shape(Pool& pool, const KernelTable& table, Report& report, Random& random, const Shape& s) {
    const KernelTable& plain = isa_scalar::table;
    const Paged p(random, s, 9 * s.page_size + 5, 8 * s.page_size - 3);
    Outcome mine(p), truth(p);
    const std::string name =
        "head size " + std::to_string(s.d) + ", pages of kind " + std::to_string(static_cast<int>(s.kind));
    const i64 shortest = p.lengths[1];
    const Rows all(p, 0);
    append(pool, table, p, all, mine);
    append(pool, plain, p, all, truth);
    check_append(mine, truth, s.small_kernels, name, report);
    // Products of 16 bits at the levels that have units for them, or where 8-bit pages ask for them.
    const std::string level = table.name;
    const bool units = level.find("bf16") != std::string::npos || level.find("amx") != std::string::npos;
    const bool small = units || s.kind == KvKind::int8;
    const float allowed = small ? 2e-2F : 2e-5F;
    for (const i64 first : {shortest - 1, shortest - 6, shortest - 40}) {
        const Rows rows(p, first);
        const std::string at = name + ", rows from " + std::to_string(first);
        select(pool, table, p, rows, truth.kv, mine);
        select(pool, plain, p, rows, truth.kv, truth);
        // Integer products, of 16-bit compressed keys at that level, may settle a near tie otherwise.
        const bool exact = !small || !s.small_kernels;
        report.expect(mine.counts == truth.counts && (!exact || mine.blocks == truth.blocks), "select, " + at);
        attend(pool, table, p, rows, truth.kv, &truth, mine);
        attend(pool, plain, p, rows, truth.kv, &truth, truth);
        report.close(mine.out, truth.out, allowed, "attend to chosen blocks, " + at);
        attend(pool, table, p, rows, truth.kv, nullptr, mine);
        attend(pool, plain, p, rows, truth.kv, nullptr, truth);
        report.close(mine.out, truth.out, allowed, "attend to everything, " + at);
    }
}

}  // namespace

void check_attention(Pool& pool, const KernelTable& table, Report& report) {
    Random random(3);
    for (const Shape& shape : kShapes) check_shape(pool, table, report, random, shape);
}

}  // namespace minicpm4
