// Bindings of the ops that read packed weights: linear, embed; and matmul, which tests the tile.
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bind/weight.hpp"

namespace minicpm4 {
namespace {

// Arguments of one product of x (n, cols).
LinearArgs product(const Context& self, const Input& x, const Weight& weight, const OptionalInput& bias,
                   const Output& y) {
    LinearArgs args;
    args.w = usable(self, weight);
    args.bytes = self.bytes();
    args.n = length(x, 0, "x");
    args.x = input<float>(x, "x", {args.n, args.w.cols});
    if (bias) args.bias = input<float>(*bias, "bias", {args.w.rows});
    args.y = output<float>(y, "out", {args.n, args.w.rows});
    return args;
}

void linear(Context& self, const Input& x, const Weight& weight, const OptionalInput& bias, const Output& y,
            float scale, bool add) {
    LinearArgs args = product(self, x, weight, bias, y);
    args.scale = scale;
    args.add = add;
    self.run([&](Pool& pool, const KernelTable& k) { k.linear(pool, args); });
}

// Takes (weight, bias, out) for each product.
using Product = std::tuple<const Weight*, OptionalInput, Output>;
constexpr size_t kMostProducts = 8;

void linears(Context& self, const Input& x, const std::vector<Product>& products) {
    if (products.size() > kMostProducts) fail("more than " + std::to_string(kMostProducts) + " products");
    LinearArgs args[kMostProducts];
    LinearArgs* next = args;
    nb::object owners[kMostProducts];
    for (const auto& [weight, bias, y] : products) {
        owners[next - args] = owner(weight);
        *next++ = product(self, x, *weight, bias, y);
    }
    self.run([&](Pool& pool, const KernelTable& k) { k.linears(pool, args, next - args); });
}

void embed(Context& self, const Input& given, const Weight& weight, float scale, const Output& y) {
    const Input ids = copied(given);
    EmbedArgs args;
    args.n = length(ids, 0, "ids");
    args.table = usable(self, weight);
    args.ids = input<i32>(ids, "ids", {args.n});
    check_range(args.ids, args.n, 0, args.table.rows, "ids");
    args.y = output<float>(y, "out", {args.n, args.table.cols});
    args.scale = scale;
    self.run([&](Pool& pool, const KernelTable& k) { k.embed(pool, args); });
}

void matmul(Context& self, const Input& a, const Input& b, const Output& c) {
    const i64 m = length(a, 0, "a"), k = length(a, 1, "a"), n = length(b, 1, "b");
    const float* left = input<float>(a, "a", {m, k});
    const float* right = input<float>(b, "b", {k, n});
    float* result = output<float>(c, "out", {m, n});
    self.run([=](Pool& pool, const KernelTable& t) { t.matmul(pool, left, right, result, m, n, k); });
}

}  // namespace

void bind_linear(nb::class_<Context>& context) {
    context.def("linear", &linear, nb::arg("x"), nb::arg("weight"), nb::arg("bias").none(), nb::arg("out"),
                nb::arg("scale") = 1.0F, nb::arg("add") = false,
                "out = x W^T + bias, or with add: out += scale * (x W^T + bias).");
    context.def("linears", &linears, nb::arg("x"), nb::arg("products"),
                "Several products of one x, as linear without add: (weight, bias, out) each.");
    context.def("embed", &embed, nb::arg("ids"), nb::arg("weight"), nb::arg("scale"), nb::arg("out"),
                "out = scale * W[ids].");
    context.def("matmul", &matmul, nb::arg("a"), nb::arg("b"), nb::arg("out"), "out = a b, float32.");
}

}  // namespace minicpm4
