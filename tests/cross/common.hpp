// What the kernel test shares: random numbers, and differences counted against a bound.
#pragma once

#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "core/isa.hpp"

namespace minicpm4 {

// The same numbers on every machine.
class Random {
public:
    explicit Random(u64 seed) : state_(seed * 0x9e3779b97f4a7c15ULL + 1) {}

    u64 bits() {
        state_ ^= state_ << 13;
        state_ ^= state_ >> 7;
        state_ ^= state_ << 17;
        return state_ * 0x2545f4914f6cdd1dULL;
    }
    i64 below(i64 n) { return static_cast<i64>((bits() >> 33) % static_cast<u64>(n)); }
    float uniform() { return static_cast<float>(bits() >> 40) * 0x1p-24F; }  // [0, 1)
    // Near enough to a unit normal.
    float normal() {
        float sum = -6.0F;
        for (int i = 0; i < 12; ++i) sum += uniform();
        return sum;
    }
    std::vector<float> normals(i64 n) {
        std::vector<float> v(static_cast<size_t>(n));
        for (float& x : v) x = normal();
        return v;
    }

private:
    u64 state_;
};

// The checks of one kernel table.
struct Report {
    std::string table;
    i64 checks = 0;
    i64 failures = 0;

    void expect(bool good, const std::string& what) {
        ++checks;
        if (good) return;
        if (++failures <= 10) std::printf("%s: %s\n", table.c_str(), what.c_str());
    }
    // |got - expected| <= bound for each; NaN never is.
    void close(const std::vector<float>& got, const std::vector<float>& expected, float bound,
               const std::string& what) {
        float worst = 0.0F;
        for (size_t i = 0; i < expected.size(); ++i) {
            const float error = std::fabs(got[i] - expected[i]);
            if (!(error <= worst)) worst = error;
        }
        const bool good = got.size() == expected.size() && worst <= bound;
        expect(good, what + ": off by " + std::to_string(worst) + ", allowed " + std::to_string(bound));
    }
};

void check_linear(Pool& pool, const KernelTable& table, Report& report);
void check_elementwise(Pool& pool, const KernelTable& table, Report& report);
void check_attention(Pool& pool, const KernelTable& table, Report& report);
bool check_tiles();

}  // namespace minicpm4
