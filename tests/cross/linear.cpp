// linear and embed of every weight format against sums in float64 of weights unpacked by plain loops.
#include <cstring>

#include "common.hpp"

namespace minicpm4 {
namespace {

struct Case {
    const char* name;
    Kind kind;
    i64 cols;
    i64 group;  // 0: none
    bool offsets;
    bool half;  // scales and offsets in float16
};

constexpr Case kCases[] = {
    {"f32", Kind::f32, 75, 0, false, false},
    {"f16", Kind::f16, 75, 0, false, false},
    {"bf16", Kind::bf16, 75, 0, false, false},
    {"f32 even", Kind::f32, 128, 0, false, false},
    {"f16 even", Kind::f16, 128, 0, false, false},
    {"bf16 even", Kind::bf16, 128, 0, false, false},
    {"int8-g16", Kind::int8, 112, 16, false, false},
    {"int8-g32", Kind::int8, 352, 32, true, true},
    {"int8-g48", Kind::int8, 144, 48, false, true},
    {"int8-g128", Kind::int8, 384, 128, true, false},
    {"int8-g16 offsets", Kind::int8, 144, 16, true, false},
    {"int4-g32", Kind::int4, 352, 32, false, true},
    {"int4-g32 offsets", Kind::int4, 224, 32, true, true},
    {"int4-g64", Kind::int4, 192, 64, true, false},
    {"int4-g96", Kind::int4, 192, 96, false, false},
    {"int4-g128", Kind::int4, 640, 128, false, true},
    {"int4-g128 offsets", Kind::int4, 384, 128, true, true},
    {"ternary-g32", Kind::ternary, 192, 32, false, true},
    {"ternary-g64", Kind::ternary, 320, 64, false, false},
    {"ternary-g128", Kind::ternary, 640, 128, false, true},
    {"ternary-row", Kind::ternary, 320, 320, false, false},
    {"int6-g16", Kind::int6, 192, 16, false, true},
    {"int6-g64 offsets", Kind::int6, 192, 64, true, false},
    {"int5-g32", Kind::int5, 352, 32, false, true},
    {"int5-g96 offsets", Kind::int5, 288, 96, true, false},
    {"int3-g48 offsets", Kind::int3, 192, 48, true, true},
    {"int3-g16", Kind::int3, 320, 16, false, false},
    {"int2-g16 offsets", Kind::int2, 192, 16, true, false},
    {"int2-g64", Kind::int2, 64, 64, false, true},
};

// float16 bits of a value that float16 holds.
u16 half_bits(float x) {
    u32 bits;
    std::memcpy(&bits, &x, 4);
    const u32 exponent = (bits >> 23) & 255U;
    const u32 sign = bits >> 16 & 0x8000U;
    return static_cast<u16>(exponent < 113 ? sign : sign | (exponent - 112) << 10 | (bits >> 13 & 0x3ffU));
}

// x with its last bits dropped: 7 bits of fraction, which bf16, float16 and float32 all hold.
float short_float(float x) {
    u32 bits;
    std::memcpy(&bits, &x, 4);
    bits &= 0xffff0000U;
    std::memcpy(&x, &bits, 4);
    return std::fabs(x) < 1e-3F ? 0.0F : x;
}

struct Packed {
    Matrix m;
    std::vector<float> values;  // (rows, cols)
    std::vector<u8> codes, scales, offsets;
};

void put(std::vector<u8>& bytes, i64 i, float x, int size, bool bf16 = false) {
    u32 bits;
    std::memcpy(&bits, &x, 4);
    const u16 small = bf16 ? static_cast<u16>(bits >> 16) : half_bits(x);
    std::memcpy(bytes.data() + i * size, size == 4 ? static_cast<void*>(&bits) : const_cast<u16*>(&small),
                static_cast<size_t>(size));
}

void pack_plain(Random& random, Packed& p) {
    const int size = p.m.kind == Kind::f32 ? 4 : 2;
    p.codes.resize(p.values.size() * static_cast<size_t>(size));
    for (size_t i = 0; i < p.values.size(); ++i) {
        p.values[i] = short_float(random.normal());
        put(p.codes, static_cast<i64>(i), p.values[i], size, p.m.kind == Kind::bf16);
    }
}

// The same for codes in two planes: their lower and their upper bits.
float put_planes(Random& random, Packed& p, i64 r, i64 k) {
    const i64 bits = p.m.kind == Kind::int6 ? 6 : p.m.kind == Kind::int5 ? 5 : 3, low = bits == 3 ? 2 : 4;
    const i64 unit = bits == 5 ? 32 : 64, code = random.below(1 << bits), field = k % unit / 16, per = 8 / low;
    u8* start = p.codes.data() + (r * p.m.cols + k / unit * unit) * bits / 8;
    u8& lower = start[field / per * 16 + k % 16];
    lower = static_cast<u8>(lower | (code & ((1 << low) - 1)) << (field % per * low));
    u8& upper = start[unit * low / 8 + (bits == 6 ? k % 16 : k % unit / 8)];
    upper = static_cast<u8>(upper | code >> low << (bits == 6 ? 2 * field : k % 8));
    return static_cast<float>(p.m.offsets != nullptr ? code : code - (1 << (bits - 1)));
}

// Writes one code of row r, and returns the number that it stands for.
float put_code(Random& random, Packed& p, i64 r, i64 k) {
    u8* row = p.codes.data();
    switch (p.m.kind) {
        case Kind::int8: {
            const i64 code = random.below(20) == 0 ? -128 : random.below(256) - 128;
            row[r * p.m.cols + k] = static_cast<u8>(code);
            return static_cast<float>(code);
        }
        case Kind::int4: {
            const i64 code = random.below(16);
            u8& byte = row[r * (p.m.cols / 2) + k / 32 * 16 + k % 16];
            byte = static_cast<u8>(byte | code << (k % 32 / 16 * 4));
            return static_cast<float>(p.m.offsets != nullptr ? code : code - 8);
        }
        case Kind::int6:
        case Kind::int5:
        case Kind::int3: return put_planes(random, p, r, k);
        case Kind::int2: {
            const i64 code = random.below(4);
            u8& byte = row[r * (p.m.cols / 4) + k / 64 * 16 + k % 16];
            byte = static_cast<u8>(byte | code << (k % 64 / 16 * 2));
            return static_cast<float>(p.m.offsets != nullptr ? code : code - 2);
        }
        default: {
            const i64 code = random.below(3);
            u8& byte = row[r * (p.m.cols / 4) + k / 64 * 16 + k % 16];
            byte = static_cast<u8>(byte | code << (k % 64 / 16 * 2));
            return static_cast<float>(code - 1);
        }
    }
}

Packed random_matrix(Random& random, const Case& c, i64 rows) {
    Packed p;
    p.m.kind = c.kind;
    p.m.rows = rows;
    p.m.cols = c.cols;
    p.m.group = c.group;
    p.values.resize(static_cast<size_t>(rows * c.cols));
    if (c.group == 0) {
        pack_plain(random, p);
        p.m.codes = p.codes.data();
        return p;
    }
    const int size = c.half ? 2 : 4;
    const i64 groups = c.cols / c.group;
    p.codes.resize(static_cast<size_t>(rows * kKinds[static_cast<int>(c.kind)].row_bytes(c.cols)));
    p.scales.resize(static_cast<size_t>(rows * groups * size));
    p.offsets.resize(c.offsets ? p.scales.size() : 0);
    p.m.codes = p.codes.data();
    p.m.scales = p.scales.data();
    p.m.offsets = c.offsets ? p.offsets.data() : nullptr;
    p.m.scale_type = p.m.offset_type = c.half ? ScaleType::f16 : ScaleType::f32;
    for (i64 i = 0; i < rows * groups; ++i) {
        const float scale = short_float(0.01F + 0.1F * random.uniform());
        const float offset = c.offsets ? short_float(random.normal()) : 0.0F;
        put(p.scales, i, scale, size);
        if (c.offsets) put(p.offsets, i, offset, size);
        for (i64 k = i % groups * c.group; k < (i % groups + 1) * c.group; ++k) {
            const float code = put_code(random, p, i / groups, k);
            p.values[static_cast<size_t>(i / groups * c.cols + k)] = scale * code + offset;
        }
    }
    return p;
}

// What a table may lose beyond float32. Grouped weights: x in 16 bits, 65024 steps for at most 128 columns
// together; bf16 and f16 ones at levels avx512_bf16, neon_i8mm and on tiles, and any by more than 16 rows on
// tiles: x and weight in bf16.
double bound(const std::string& table, const Packed& p, const float* x, i64 n, i64 r) {
    const float* w = p.values.data() + r * p.m.cols;
    const bool tiles = table == "amx" || table == "amx_emulated";
    double lost = 1e-6, most = 0.0, sum = 0.0;
    for (i64 k = 0; k < p.m.cols; ++k) {
        lost += 3e-6 * std::fabs(static_cast<double>(x[k]) * w[k]);
        if (p.m.group == 0 || (tiles && n > 16)) {
            const bool halves = tiles || table == "avx512_bf16" || table == "neon_i8mm";
            const bool rounded = halves && p.m.kind != Kind::f32;
            lost += rounded ? 0x1p-7 * std::fabs(static_cast<double>(x[k]) * w[k]) : 0.0;
            continue;
        }
        most = std::fmax(most, std::fabs(x[k]));
        sum += std::fabs(w[k]);
        if ((k + 1) % 128 == 0 || k + 1 == p.m.cols) {
            lost += table == "scalar" ? 0.0 : most / 65024 * sum;
            most = sum = 0.0;
        }
    }
    return lost;
}

void check_product(Pool& pool, const KernelTable& table, Report& report, Random& random, const Case& c, i64 n,
                   i64 rows) {
    const Packed p = random_matrix(random, c, rows);
    const std::vector<float> x = random.normals(n * c.cols), bias = random.normals(rows);
    std::vector<float> y = random.normals(n * rows);
    const std::vector<float> before = y;
    LinearArgs args;
    args.w = p.m;
    args.x = x.data();
    args.bias = n % 3 != 0 ? bias.data() : nullptr;
    args.y = y.data();
    args.n = n;
    args.scale = 0.75F;
    args.add = n % 2 == 0;
    table.linear(pool, args);
    std::vector<float> y2 = before, y3 = before;
    LinearArgs both[2] = {args, args};
    both[0].y = y2.data();
    both[1].y = y3.data();
    table.linears(pool, both, 2);
    report.expect(y2 == y && y3 == y, std::string("linears ") + c.name + ", " + std::to_string(n) + " rows");
    // Tiles have an order of additions of their own.
    if (std::string(table.name).rfind("amx", 0) != 0) {
        std::vector<float> alone = before;
        for (i64 j = 0; j < n; ++j) {
            LinearArgs one = args;
            one.x += j * c.cols;
            one.y = alone.data() + j * rows;
            one.n = 1;
            table.linear(pool, one);
        }
        report.expect(std::memcmp(alone.data(), y.data(), y.size() * sizeof(float)) == 0,
                      std::string("rows alone ") + c.name + ", " + std::to_string(n) + " rows");
    }
    double worst = 0.0;
    for (i64 j = 0; j < n; ++j) {
        for (i64 r = 0; r < rows; ++r) {
            double sum = args.bias != nullptr ? bias[static_cast<size_t>(r)] : 0.0;
            for (i64 k = 0; k < c.cols; ++k) {
                sum += static_cast<double>(x[static_cast<size_t>(j * c.cols + k)]) *
                       p.values[static_cast<size_t>(r * c.cols + k)];
            }
            const size_t at = static_cast<size_t>(j * rows + r);
            const double expected = args.add ? before[at] + 0.75 * sum : sum;
            const float* row = x.data() + j * c.cols;
            const double error = std::fabs(y[at] - expected) / bound(table.name, p, row, n, r);
            if (!(error <= worst)) worst = error;
        }
    }
    report.expect(worst <= 1.0, std::string("linear ") + c.name + ", " + std::to_string(n) + " by " +
                                    std::to_string(rows) + " rows: off by " + std::to_string(worst) +
                                    " times what is allowed");
}

void check_embed(Pool& pool, const KernelTable& table, Report& report, Random& random, const Case& c) {
    const Packed p = random_matrix(random, c, 19);
    const std::vector<i32> ids = {18, 0, 7, 7, 3};
    std::vector<float> y(ids.size() * static_cast<size_t>(c.cols)), expected;
    for (const i32 id : ids) {
        const float* row = p.values.data() + id * c.cols;
        for (i64 k = 0; k < c.cols; ++k) expected.push_back(3.0F * row[k]);
    }
    EmbedArgs args;
    args.table = p.m;
    args.ids = ids.data();
    args.y = y.data();
    args.n = static_cast<i64>(ids.size());
    args.scale = 3.0F;
    table.embed(pool, args);
    report.close(y, expected, 2e-5F, std::string("embed ") + c.name);
}

}  // namespace

void check_linear(Pool& pool, const KernelTable& table, Report& report) {
    Random random(1);
    for (const Case& c : kCases) {
        for (const i64 n : {1, 2, 3, 4, 7, 9, 16, 40}) {
            constexpr i64 kRows[] = {1, 5, 11, 24, 37, 101};
            check_product(pool, table, report, random, c, n, kRows[random.below(6)]);
        }
        check_embed(pool, table, report, random, c);
    }
}

}  // namespace minicpm4
