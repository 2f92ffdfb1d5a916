// Tests every kernel table that runs on this processor, without Python, so that a cross-built program can
// be run under an emulator: scripts/test_arm.sh. Exits with 1 on a difference.
#include "common.hpp"

int main() {
    using namespace minicpm4;
    for (const auto& feature : cpu_features()) {
        if (feature.second) std::printf("%s ", feature.first.c_str());
    }
    std::printf("\n");
    bool good = check_tiles();
    std::vector<const KernelTable*> tables = available_tables();
    for (const KernelTable* table : emulated_tables()) tables.push_back(table);
    for (const KernelTable* table : tables) {
        for (const int threads : {1, 3}) {
            Pool pool(threads);
            Report report;
            report.table = table->name;
            check_linear(pool, *table, report);
            check_elementwise(pool, *table, report);
            check_attention(pool, *table, report);
            std::printf("%s, %d threads: %lld checks, %lld failures\n", table->name, threads,
                        static_cast<long long>(report.checks), static_cast<long long>(report.failures));
            std::fflush(stdout);
            good = good && report.failures == 0;
        }
    }
    return good ? 0 : 1;
}
