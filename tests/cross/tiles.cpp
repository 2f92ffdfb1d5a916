// The imitation of matrix tiles against their definition in plain arithmetic, bit by bit; real ones too where they are.
#include <cfloat>
#include <cstring>

#include "common.hpp"

namespace minicpm4 {

#if defined(MINICPM4_AMX)

namespace {

constexpr int kSide = 16;

struct Tile {
    u16 words[kSide][2 * kSide];
    u8 byte(int row, int i) const { return static_cast<u8>(words[row][i / 2] >> (i % 2 * 8)); }
};

// Any signs and mantissas; exponents from `low` on, `count` of them.
Tile random_tile(Random& random, i64 low, i64 count) {
    Tile tile;
    for (auto& row : tile.words) {
        for (u16& word : row) {
            word = static_cast<u16>((random.bits() >> 48 & 0x807f) | static_cast<u64>(low + random.below(count)) << 7);
        }
    }
    return tile;
}

float flushed(float x) { return std::fabs(x) < FLT_MIN ? std::copysign(0.0F, x) : x; }

float value(u16 word) {
    const u32 bits = static_cast<u32>(word) << 16;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return flushed(x);
}

// What probe gives (kernels.hpp): each product twice.
void multiply(const Tile& a, const Tile& b, float (*real)[kSide], i32 (*with_signs)[kSide], i32 (*without)[kSide]) {
    for (int m = 0; m < kSide; ++m) {
        for (int n = 0; n < kSide; ++n) {
            float even = 0.0F, odd = 0.0F;
            i32 sums[2] = {0, 0};
            for (int t = 0; t < kSide; ++t) {
                even = flushed(std::fmaf(value(a.words[m][2 * t]), value(b.words[t][2 * n]), even));
                odd = flushed(std::fmaf(value(a.words[m][2 * t + 1]), value(b.words[t][2 * n + 1]), odd));
                for (int i = 0; i < 4; ++i) {
                    const i32 left = a.byte(m, 4 * t + i), right = static_cast<i8>(b.byte(t, 4 * n + i));
                    sums[0] += static_cast<i8>(left) * right;
                    sums[1] += left * right;
                }
            }
            const float sum = flushed(even + odd);
            real[m][n] = flushed(flushed(0.0F + sum) + sum);
            with_signs[m][n] = 2 * sums[0];
            without[m][n] = 2 * sums[1];
        }
    }
}

void check_tiles(const TileKernels& kernels, Report& report) {
    Random random(7);
    // Ordinary numbers; products on either side of the least normal one; denormal operands.
    const i64 ranges[][2] = {{120, 16}, {48, 32}, {0, 3}};
    for (const auto& range : ranges) {
        for (int repeat = 0; repeat < 8; ++repeat) {
            const Tile a = random_tile(random, range[0], range[1]);
            const Tile b = random_tile(random, range[0] == 0 ? 120 : range[0], range[1]);
            alignas(64) unsigned char got[3][1024], expected[3][1024];
            float real[kSide][kSide];
            i32 with_signs[kSide][kSide], without[kSide][kSide];
            kernels.probe(&a, &b, got);
            multiply(a, b, real, with_signs, without);
            std::memcpy(expected[0], real, sizeof real);
            std::memcpy(expected[1], with_signs, sizeof with_signs);
            std::memcpy(expected[2], without, sizeof without);
            const char* names[] = {"bf16", "signed bytes", "unsigned bytes"};
            for (int i = 0; i < 3; ++i) {
                report.expect(std::memcmp(got[i], expected[i], 1024) == 0, std::string("tiles of ") + names[i]);
            }
        }
    }
}

}  // namespace

bool check_tiles() {
    i64 failures = 0;
    for (const KernelTable* table : available_tables()) {
        if (std::strcmp(table->name, isa_amx::kernels.name) != 0) continue;
        Report report;
        report.table = table->name;
        check_tiles(isa_amx::kernels, report);
        failures += report.failures;
    }
    for (const KernelTable* table : emulated_tables()) {
        Report report;
        report.table = table->name;
        check_tiles(isa_amx_emulated::kernels, report);
        std::printf("%s, tiles: %lld checks, %lld failures\n", table->name, static_cast<long long>(report.checks),
                    static_cast<long long>(report.failures));
        failures += report.failures;
    }
    return failures == 0;
}

#else

bool check_tiles() { return true; }

#endif

}  // namespace minicpm4
