// Ops without weight matrices, and the float32 matrix product, against the scalar table.
#include "common.hpp"

namespace minicpm4 {
namespace {

constexpr i64 kWidths[] = {1, 3, 4, 7, 16, 33, 100, 257};

void check_rows(Pool& pool, const KernelTable& table, Report& report, Random& random, i64 width) {
    const KernelTable& plain = isa_scalar::table;
    const i64 rows = 5;
    const std::vector<float> x = random.normals(rows * width), z = random.normals(rows * width);
    const std::vector<float> weight = random.normals(width);
    const std::string at = ", width " + std::to_string(width);

    std::vector<float> y(x.size()), expected(x.size());
    table.rms_norm(pool, x.data(), weight.data(), y.data(), rows, width, 1e-5F);
    plain.rms_norm(pool, x.data(), weight.data(), expected.data(), rows, width, 1e-5F);
    report.close(y, expected, 1e-4F, "rms_norm" + at);

    table.silu_mul(pool, x.data(), z.data(), y.data(), rows * width);
    plain.silu_mul(pool, x.data(), z.data(), expected.data(), rows * width);
    report.close(y, expected, 2e-5F, "silu_mul" + at);

    y = expected = x;
    table.add_scaled(pool, y.data(), z.data(), 0.3F, rows * width);
    plain.add_scaled(pool, expected.data(), z.data(), 0.3F, rows * width);
    report.close(y, expected, 2e-6F, "add_scaled" + at);

    y.resize(rows);
    expected.resize(rows);
    table.log_sum_exp(pool, x.data(), y.data(), rows, width);
    plain.log_sum_exp(pool, x.data(), expected.data(), rows, width);
    report.close(y, expected, 1e-5F, "log_sum_exp" + at);

    const i64 k = width < 5 ? width : 5;
    std::vector<i32> columns(static_cast<size_t>(rows * k)), best(columns.size());
    y.resize(columns.size());
    expected.resize(columns.size());
    table.top_k(pool, x.data(), y.data(), columns.data(), rows, width, k);
    plain.top_k(pool, x.data(), expected.data(), best.data(), rows, width, k);
    report.expect(y == expected && columns == best, "top_k" + at);
}

void check_rotary(Pool& pool, const KernelTable& table, Report& report, Random& random, i64 d) {
    const std::vector<float> cos = random.normals(9 * d / 2), sin = random.normals(9 * d / 2);
    const std::vector<i32> positions = {4, 0, 8};
    std::vector<float> y = random.normals(3 * 5 * d), expected = y;
    RotaryArgs args;
    args.positions = positions.data();
    args.cos = cos.data();
    args.sin = sin.data();
    args.n = 3;
    args.heads = 5;
    args.d = d;
    args.x = y.data();
    table.rotary(pool, args);
    args.x = expected.data();
    isa_scalar::table.rotary(pool, args);
    report.close(y, expected, 1e-5F, "rotary, head size " + std::to_string(d));
}

}  // namespace

void check_elementwise(Pool& pool, const KernelTable& table, Report& report) {
    Random random(2);
    for (const i64 width : kWidths) check_rows(pool, table, report, random, width);
    for (const i64 d : {2, 6, 32, 64, 96}) check_rotary(pool, table, report, random, d);
    for (const i64 m : {1, 7, 13, 30}) {
        const i64 n = m * 3 % 41 + 1, k = m * 5 + 2;
        const std::vector<float> a = random.normals(m * k), b = random.normals(k * n);
        std::vector<float> c(static_cast<size_t>(m * n)), expected = c;
        table.matmul(pool, a.data(), b.data(), c.data(), m, n, k);
        isa_scalar::table.matmul(pool, a.data(), b.data(), expected.data(), m, n, k);
        report.close(c, expected, 1e-4F, "matmul of " + std::to_string(m) + " rows");
    }
}

}  // namespace minicpm4
