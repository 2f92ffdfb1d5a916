// The map of ways (linear/ways.hpp) for Python: of all levels, whatever this machine has.
#include "linear/ways.hpp"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <tuple>
#include <vector>

#include "bind/arrays.hpp"

namespace minicpm4 {
namespace {

// (formats, layout, first and last row count, only with 8 bits, method)
using Row = std::tuple<std::vector<std::string>, std::string, i64, std::optional<i64>, bool, std::string>;

const char* name_of(Method method) { return kMethodInfos[static_cast<int>(method)].name; }

int level_of(const std::string& name) {
    const int level = find_level(name.c_str());
    if (level == kNumLevels) fail("level '" + name + "' is unknown");
    return level;
}

// The formats for some product of which `way` is the first that fits.
std::vector<std::string> formats_of(int level, const Way& way) {
    std::vector<std::string> names;
    for (const KindInfo& info : kKinds) {
        bool found = false;
        each_product<false>(level, info.kind, [&](const Product&, const Way* first) { found = found || first == &way; });
        if (found) names.emplace_back(info.name);
    }
    return names;
}

std::vector<Row> ways(const std::string& name) {
    constexpr const char* kLayouts[] = {"rows", "panels", "any"};
    std::vector<Row> rows;
    const int start = level_of(name);
    for (int level = start; level >= 0; level = kLevels[level].rest) {
        for (int i = 0; i < kLevels[level].count; ++i) {
            const Way& way = kLevels[level].ways[i];
            const std::vector<std::string> formats = formats_of(start, way);
            if (formats.empty()) continue;
            const std::optional<i64> last = way.last == kMany ? std::nullopt : std::optional<i64>(way.last);
            rows.emplace_back(formats, kLayouts[static_cast<int>(way.layout)], way.first, last, way.narrow,
                              name_of(way.method));
        }
    }
    return rows;
}

std::optional<std::string> method(const std::string& name, const std::string& format, const std::string& layout,
                                  i64 n, bool narrow) {
    for (const KindInfo& info : kKinds) {
        if (format != info.name) continue;
        const Way* way = find_way(level_of(name), {info.kind, layout == "panels", n, narrow});
        return way == nullptr ? std::nullopt : std::optional<std::string>(name_of(way->method));
    }
    fail("weight format '" + format + "' is unknown");
}

std::vector<std::string> levels() {
    std::vector<std::string> names;
    for (const Level& level : kLevels) names.emplace_back(level.name);
    return names;
}

std::vector<std::tuple<std::string, std::string, std::string>> methods() {
    std::vector<std::tuple<std::string, std::string, std::string>> found;
    for (const MethodInfo& info : kMethodInfos) found.emplace_back(info.name, info.file, info.meaning);
    return found;
}

// Rows of x at which each_product looks: there must be no other at which a choice changes.
constexpr bool sees_every_change() {
    for (const Level& level : kLevels) {
        for (int i = 0; i < level.count; ++i) {
            const Way& way = level.ways[i];
            bool first = false, last = way.last == kMany;
            for (const i64 n : kProbedRows) {
                first = first || n == way.first;
                last = last || n == way.last;
            }
            if (!first || !last) return false;
        }
    }
    return true;
}

// Weights in rows may meet any number of rows of x.
constexpr bool takes_all_rows() {
    bool all = true;
    for (int level = 0; level < kNumLevels; ++level) {
        for (const KindInfo& info : kKinds) {
            each_product<false>(level, info.kind, [&all](const Product& p, const Way* way) {
                all = all && (p.panels || way != nullptr);
            });
        }
    }
    return all;
}

static_assert(sees_every_change() && takes_all_rows());

}  // namespace

void bind_ways(nb::module_& module) {
    module.def("all_levels", &levels, "Levels of all processors.");
    module.def("methods", &methods, "(name, file in cpp/linear/, meaning) of each way to multiply.");
    module.def("ways", &ways, nb::arg("level"),
               "How a level multiplies, in the order in which it looks: (formats, layout, first and last number of rows of "
               "x, only with narrow activations, method).");
    module.def("method", &method, nb::arg("level"), nb::arg("format"), nb::arg("layout"), nb::arg("rows"),
               nb::arg("narrow") = false, "The method of one product; None for panels that a level does not take.");
}

}  // namespace minicpm4
