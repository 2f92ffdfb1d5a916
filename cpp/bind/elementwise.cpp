// Bindings of the ops without weight matrices.
#include "bind/arrays.hpp"

namespace minicpm4 {
namespace {

void rms_norm(Context& self, const Input& x, const Input& weight, float eps, const Output& y) {
    const i64 rows = length(x, 0, "x"), width = length(x, 1, "x");
    const float* in = input<float>(x, "x", {rows, width});
    const float* w = input<float>(weight, "weight", {width});
    float* out = output<float>(y, "out", {rows, width});
    self.run([=](Pool& pool, const KernelTable& k) { k.rms_norm(pool, in, w, out, rows, width, eps); });
}

void rotary(Context& self, const Output& x, const Input& given, const Input& cos, const Input& sin) {
    const Input positions = copied(given);
    RotaryArgs args;
    args.n = length(x, 0, "x");
    args.heads = length(x, 1, "x");
    args.d = length(x, 2, "x");
    if (args.d % 2 != 0) fail("x has an odd head size");
    const i64 rows = length(cos, 0, "cos");
    args.x = output<float>(x, "x", {args.n, args.heads, args.d});
    args.positions = input<i32>(positions, "positions", {args.n});
    args.cos = input<float>(cos, "cos", {rows, args.d / 2});
    args.sin = input<float>(sin, "sin", {rows, args.d / 2});
    check_range(args.positions, args.n, 0, rows, "positions");
    self.run([&](Pool& pool, const KernelTable& k) { k.rotary(pool, args); });
}

void silu_mul(Context& self, const Input& gate, const Input& up, const Output& y) {
    const i64 rows = length(gate, 0, "gate"), width = length(gate, 1, "gate");
    const float* g = input<float>(gate, "gate", {rows, width});
    const float* u = input<float>(up, "up", {rows, width});
    float* out = output<float>(y, "out", {rows, width});
    self.run([=](Pool& pool, const KernelTable& k) { k.silu_mul(pool, g, u, out, rows * width); });
}

void add_scaled(Context& self, const Output& x, const Input& y, float scale) {
    const i64 rows = length(x, 0, "x"), width = length(x, 1, "x");
    float* sum = output<float>(x, "x", {rows, width});
    const float* term = input<float>(y, "y", {rows, width});
    self.run([=](Pool& pool, const KernelTable& k) {
        k.add_scaled(pool, sum, term, scale, rows * width);
    });
}

void log_sum_exp(Context& self, const Input& logits, const Output& y) {
    const i64 rows = length(logits, 0, "logits"), width = length(logits, 1, "logits");
    const float* in = input<float>(logits, "logits", {rows, width});
    float* out = output<float>(y, "out", {rows});
    self.run([=](Pool& pool, const KernelTable& k) { k.log_sum_exp(pool, in, out, rows, width); });
}

void top_k(Context& self, const Input& logits, const Output& values, const Output& columns) {
    const i64 rows = length(logits, 0, "logits"), width = length(logits, 1, "logits"), count = length(values, 1, "values");
    const float* in = input<float>(logits, "logits", {rows, width});
    float* best = output<float>(values, "values", {rows, count});
    i32* where = output<i32>(columns, "columns", {rows, count});
    if (count > width) fail("k = " + std::to_string(count) + " is above " + std::to_string(width) + " columns");
    self.run([=](Pool& pool, const KernelTable& k) {
        k.top_k(pool, in, best, where, rows, width, count);
    });
}

}  // namespace

void bind_elementwise(nb::class_<Context>& context) {
    context.def("rms_norm", &rms_norm, nb::arg("x"), nb::arg("weight"), nb::arg("eps"), nb::arg("out"),
                "out = x / sqrt(mean(x^2) + eps) * weight, by rows; out may be x.");
    context.def("rotary", &rotary, nb::arg("x"), nb::arg("positions"), nb::arg("cos"), nb::arg("sin"),
                "Rotates x (n, heads, d) in place.");
    context.def("silu_mul", &silu_mul, nb::arg("gate"), nb::arg("up"), nb::arg("out"),
                "out = gate * sigmoid(gate) * up; out may be either.");
    context.def("add_scaled", &add_scaled, nb::arg("x"), nb::arg("y"), nb::arg("scale"), "x += scale * y.");
    context.def("log_sum_exp", &log_sum_exp, nb::arg("logits"), nb::arg("out"), "By rows.");
    context.def("top_k", &top_k, nb::arg("logits"), nb::arg("values"), nb::arg("columns"),
                "The largest of each row, descending; lower columns first on a tie.");
}

}  // namespace minicpm4
