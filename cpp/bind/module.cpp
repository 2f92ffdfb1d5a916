// The Python module minicpm4._cpu.
#include "bind/arrays.hpp"

#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <vector>

#include "core/isa.hpp"
#include "linear/ways.hpp"

namespace minicpm4 {
namespace {

constexpr int kMaxThreads = 1024;

using Tables = std::vector<const KernelTable*>;

std::vector<std::string> names_of(const Tables& tables) {
    std::vector<std::string> names;
    for (const KernelTable* table : tables) names.emplace_back(table->name);
    return names;
}

std::vector<std::string> isa_levels() { return names_of(available_tables()); }
std::vector<std::string> emulated_levels() { return names_of(emulated_tables()); }

nb::dict features() {
    nb::dict found;
    for (const auto& [name, present] : cpu_features()) found[name.c_str()] = present;
    return found;
}

// UnsupportedError, with what to do.
void raise_refused(const std::exception_ptr& error, void*) {
    try {
        std::rethrow_exception(error);
    } catch (const ThreadsRefused& refused) {
        const nb::object type = nb::module_::import_("minicpm4.errors").attr("UnsupportedError");
        PyErr_SetObject(type.ptr(), type(refused.what(), "ask for fewer (--threads), or raise the limit").ptr());
    }
}

void make_context(Context* self, int threads, const std::string& isa, bool bytes, bool measuring) {
    if (threads < 1 || threads > kMaxThreads) {
        fail("threads = " + std::to_string(threads) + ", outside 1 to " + std::to_string(kMaxThreads));
    }
    for (const Tables& tables : {available_tables(), emulated_tables()}) {
        for (const KernelTable* table : tables) {
            if (isa != table->name) continue;
            if (bytes && !narrows(find_level(table->name))) fail("kernels of level " + isa + " do not round activations to 8 bits");
            new (self) Context(threads, table, bytes, measuring);
            return;
        }
    }
    fail("instruction set '" + isa + "' is not available on this machine");
}

}  // namespace
}  // namespace minicpm4

NB_MODULE(_cpu, module) {
    using namespace minicpm4;
    module.doc() = "CPU kernels of minicpm4; use them through minicpm4.kernels.";
    module.def("isa_levels", &isa_levels, "Instruction sets that run on this machine, the best last.");
    module.def("emulated_levels", &emulated_levels,
               "Levels that imitate units which this machine may lack: for tests, never chosen unless asked for.");
    module.def("cpu_features", &features, "Processor features and whether they are usable.");
    nb::register_exception_translator(&raise_refused);
    nb::set_leak_warnings(false);  // a daemon thread that ends with the process keeps what it holds
    nb::module_::import_("atexit").attr("register")(nb::cpp_function(&Unlocked::end));
    nb::class_<Context> context(module, "Context", "A thread pool and the kernels of one instruction set.");
    context.def("__init__", &make_context, nb::arg("threads"), nb::arg("isa"), nb::arg("narrow") = false, nb::arg("measuring") = false);
    context.def_prop_ro("threads", &Context::threads);
    context.def_prop_ro("reserved", &Context::reserved,
                        "Bytes that kernels keep between calls; of a measuring context, which computes nothing, what they would.");
    context.def_prop_ro("isa", [](const Context& self) { return std::string(self.kernels().name); });
    context.def_prop_ro("can_narrow", [](const Context& self) { return narrows(self.level()); });
    context.def_prop_ro("panels", [](const Context& self) {
        std::vector<std::string> kinds;
        for (const KindInfo& info : kKinds) {
            if (takes_panels(self.level(), info.kind)) kinds.emplace_back(info.name);
        }
        return kinds;
    }, "Formats of which weights are read in panels.");
    bind_ways(module);
    bind_weight(module);
    bind_linear(context);
    bind_elementwise(context);
    bind_attention(module, context);
    bind_layer(module, context);
}
