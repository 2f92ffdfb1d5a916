// Bindings of the ops that read packed weights: linear, embed; and matmul, which tests the tile.
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bindings.hpp"

namespace minicpm4 {
namespace {

struct KindInfo {
    const char* name;
    Kind kind;
    i64 weights_per_code;
    i64 row_multiple;
    i64 group_multiple;  // 0: no groups
};

constexpr KindInfo kKinds[] = {
    {"f32", Kind::f32, 1, 1, 0},    {"f16", Kind::f16, 1, 1, 0},     {"bf16", Kind::bf16, 1, 1, 0},
    {"int8", Kind::int8, 1, 16, 16}, {"int4", Kind::int4, 2, 32, 32}, {"ternary", Kind::ternary, 4, 64, 32},
};

const KindInfo& kind_info(const std::string& name) {
    for (const KindInfo& info : kKinds) {
        if (name == info.name) return info;
    }
    fail("weight format '" + name + "' is unknown");
}

bool codes_fit(Kind kind, nb::dlpack::dtype type) {
    switch (kind) {
        case Kind::f32: return has_type<float>(type);
        case Kind::f16: return is_half(type);
        case Kind::bf16: return has_type<u16>(type);
        case Kind::int8: return has_type<i8>(type);
        default: return has_type<u8>(type);
    }
}

const void* per_group(const Input& array, const char* name, const Matrix& m, bool* half) {
    *half = is_half(array.dtype());
    if (!*half && !has_type<float>(array.dtype())) fail(std::string(name) + " has the wrong dtype");
    check_shape(array, name, {m.rows, m.cols / m.group});
    return array.data();
}

Matrix matrix(const std::string& kind, i64 cols, i64 group, const Input& codes, const OptionalInput& scales,
              const OptionalInput& offsets) {
    const KindInfo& info = kind_info(kind);
    Matrix m;
    m.kind = info.kind;
    m.rows = length(codes, 0);
    m.cols = cols;
    m.group = group;
    if (!codes_fit(info.kind, codes.dtype())) fail("weight codes have the wrong dtype for " + kind);
    if (cols < 0 || cols % info.row_multiple != 0) {
        fail(std::to_string(cols) + " columns do not fit weight format " + kind);
    }
    check_shape(codes, "weight codes", {kAny, cols / info.weights_per_code});
    m.codes = codes.data();
    if (info.group_multiple == 0) {
        if (scales || offsets || group != 0) fail("weight format " + kind + " has no groups");
        return m;
    }
    if (group <= 0 || group % info.group_multiple != 0 || cols % group != 0) {
        fail("group size " + std::to_string(group) + " does not fit " + std::to_string(cols) + " columns of " +
             kind);
    }
    if (!scales) fail("weight format " + kind + " needs scales");
    m.scales = per_group(*scales, "weight scales", m, &m.half_scales);
    if (offsets && info.kind == Kind::ternary) fail("ternary weights have no offsets");
    if (offsets) m.offsets = per_group(*offsets, "weight offsets", m, &m.half_offsets);
    return m;
}

void linear(Context& self, const Input& x, const std::string& kind, i64 group, const Input& codes,
            const OptionalInput& scales, const OptionalInput& offsets, const OptionalInput& bias,
            const Output& y, float scale, bool add) {
    LinearArgs args;
    args.w = matrix(kind, length(x, 1), group, codes, scales, offsets);
    args.n = length(x, 0);
    args.x = input<float>(x, "x", {args.n, args.w.cols});
    if (bias) args.bias = input<float>(*bias, "bias", {args.w.rows});
    args.y = output<float>(y, "out", {args.n, args.w.rows});
    args.scale = scale;
    args.add = add;
    run_released(self, [&](Pool& pool, const KernelTable& k) { k.linear(pool, args); });
}

// Takes (kind, group, codes, scales, offsets, bias, out) for each product.
using Product = std::tuple<std::string, i64, Input, OptionalInput, OptionalInput, OptionalInput, Output>;
constexpr size_t kMostProducts = 8;

void linears(Context& self, const Input& x, const std::vector<Product>& products) {
    if (products.size() > kMostProducts) fail("more than " + std::to_string(kMostProducts) + " products");
    LinearArgs args[kMostProducts];
    LinearArgs* next = args;
    for (const auto& [kind, group, codes, scales, offsets, bias, y] : products) {
        next->w = matrix(kind, length(x, 1), group, codes, scales, offsets);
        next->n = length(x, 0);
        next->x = input<float>(x, "x", {next->n, next->w.cols});
        if (bias) next->bias = input<float>(*bias, "bias", {next->w.rows});
        next->y = output<float>(y, "out", {next->n, next->w.rows});
        ++next;
    }
    run_released(self, [&](Pool& pool, const KernelTable& k) { k.linears(pool, args, next - args); });
}

void embed(Context& self, const Input& ids, const std::string& kind, i64 group, const Input& codes,
           const OptionalInput& scales, const OptionalInput& offsets, float scale, const Output& y) {
    EmbedArgs args;
    args.n = length(ids, 0);
    args.table = matrix(kind, length(y, 1), group, codes, scales, offsets);
    args.ids = input<i32>(ids, "ids", {args.n});
    check_range(args.ids, args.n, 0, args.table.rows, "ids");
    args.y = output<float>(y, "out", {args.n, args.table.cols});
    args.scale = scale;
    run_released(self, [&](Pool& pool, const KernelTable& k) { k.embed(pool, args); });
}

void matmul(Context& self, const Input& a, const Input& b, const Output& c) {
    const i64 m = length(a, 0), k = length(a, 1), n = length(b, 1);
    const float* left = input<float>(a, "a", {m, k});
    const float* right = input<float>(b, "b", {k, n});
    float* result = output<float>(c, "out", {m, n});
    run_released(self, [=](Pool& pool, const KernelTable& t) { t.matmul(pool, left, right, result, m, n, k); });
}

}  // namespace

void bind_linear(nb::class_<Context>& context) {
    context.def("linear", &linear, nb::arg("x"), nb::arg("kind"), nb::arg("group"), nb::arg("codes"),
                nb::arg("scales").none(), nb::arg("offsets").none(), nb::arg("bias").none(), nb::arg("out"),
                nb::arg("scale") = 1.0F, nb::arg("add") = false,
                "out = x W^T + bias, or with add: out += scale * (x W^T + bias).");
    context.def("linears", &linears, nb::arg("x"), nb::arg("products"),
                "Several products of one x, as linear without add: (kind, group, codes, scales, offsets, bias, "
                "out) each.");
    context.def("embed", &embed, nb::arg("ids"), nb::arg("kind"), nb::arg("group"), nb::arg("codes"),
                nb::arg("scales").none(), nb::arg("offsets").none(), nb::arg("scale"), nb::arg("out"),
                "out = scale * W[ids].");
    context.def("matmul", &matmul, nb::arg("a"), nb::arg("b"), nb::arg("out"), "out = a b, float32.");
}

}  // namespace minicpm4
