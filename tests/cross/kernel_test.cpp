// Tests every kernel table that runs on this processor, without Python, so that a cross-built program can
// be run under an emulator: scripts/test_arm.sh. Arguments, where there are any, name the tables that are to run.
// Exits with 1 on a difference, with 2 where a table that was named is not there.
#include <algorithm>

#include "common.hpp"

int main(int argc, char** argv) {
    using namespace minicpm4;
    for (const auto& feature : cpu_features()) {
        if (feature.second) std::printf("%s ", feature.first.c_str());
    }
    std::printf("\n");
    bool good = check_tiles();
    std::vector<const KernelTable*> tables = available_tables();
    for (const KernelTable* table : emulated_tables()) tables.push_back(table);
    std::printf("levels:");
    for (const KernelTable* table : tables) std::printf(" %s", table->name);
    std::printf("\n");
    const std::vector<std::string> asked(argv + 1, argv + argc);
    for (const std::string& name : asked) {
        if (std::none_of(tables.begin(), tables.end(), [&](const KernelTable* table) { return table->name == name; })) {
            std::printf("no level %s here\n", name.c_str());
            return 2;
        }
    }
    for (const KernelTable* table : tables) {
        if (!asked.empty() && std::find(asked.begin(), asked.end(), table->name) == asked.end()) continue;
        // With one thread a part is the whole: what that changes is no matter of a processor, and tested in Python.
        Pool pool(3);
        Report report;
        report.table = table->name;
        check_linear(pool, *table, report);
        check_elementwise(pool, *table, report);
        check_attention(pool, *table, report);
        std::printf("%s: %lld checks, %lld failures\n", table->name, static_cast<long long>(report.checks),
                    static_cast<long long>(report.failures));
        std::fflush(stdout);
        good = good && report.failures == 0;
    }
    return good ? 0 : 1;
}
