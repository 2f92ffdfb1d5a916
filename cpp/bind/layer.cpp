// The coarse ops of a layer, each in one call: between the kernels of one there is no Python, and what passes
// from one to the next stays in the pool's memory. They are the compositions of kernels/contract.py.
#include "bind/attention_args.hpp"
#include "bind/weight.hpp"

namespace minicpm4 {
namespace {

// Weights of one linear layer, kept alive by their owner.
struct Projection {
    const Weight* weight;
    OptionalInput bias;
};

// What `qkv` needs of a layer, checked once but for its fit with pages and x.
struct QkvWeights {
    Input norm;
    float eps;
    Projection q, k, v;
    OptionalInput q_norm, k_norm;
};

struct GateUpWeights {
    Input norm;
    float eps;
    Projection gate, up;
};

LinearArgs project(const Context& self, const Projection& p, i64 n, i64 cols, float* y) {
    LinearArgs args;
    args.w = usable(self, *p.weight);
    args.bytes = self.bytes();
    if (args.w.cols != cols) {
        fail("a weight has " + std::to_string(args.w.cols) + " columns for " + std::to_string(cols) + " of x");
    }
    args.n = n;
    if (p.bias) args.bias = input<float>(*p.bias, "bias", {args.w.rows});
    args.y = y;
    return args;
}

i64 rows_of(const Projection& p) { return p.weight->matrix().rows; }

// Places of several float arrays in the pool's memory of the op, a cache line apart.
class Memory {
public:
    i64 add(i64 floats) {
        const i64 at = size_;
        size_ += (floats + 31) / 16 * 16;
        return at;
    }
    float* get(Pool& pool) const { return static_cast<float*>(pool.reserve_op(size_ * 4)); }

private:
    i64 size_ = 0;
};

struct HeadNorms {
    const float* q = nullptr;
    const float* k = nullptr;
};

void qkv(Context& self, const Input& x, const QkvWeights& w, const Pages& pages, const Rows& rows, const Output& out) {
    AppendArgs keep = append_args(pages, rows);
    const i64 n = keep.step.n, width = length(x, 1, "x"), d = keep.kv.d, kv_width = keep.kv.hkv * d;
    const float* in = input<float>(x, "x", {n, width});
    const float* norm_weight = input<float>(w.norm, "norm", {width});
    if (rows_of(w.k) != kv_width || rows_of(w.v) != kv_width || rows_of(w.q) % d != 0) {
        fail("projections do not fit pages of " + std::to_string(keep.kv.hkv) + " heads of " + std::to_string(d));
    }
    HeadNorms norms;
    if (w.q_norm) norms.q = input<float>(*w.q_norm, "q_norm", {d});
    if (w.k_norm) norms.k = input<float>(*w.k_norm, "k_norm", {d});
    Memory memory;
    const i64 h = memory.add(n * width), k = memory.add(n * kv_width), v = memory.add(n * kv_width);
    LinearArgs products[3] = {
        project(self, w.q, n, width, output<float>(out, "out", {n, rows_of(w.q)})),
        project(self, w.k, n, width, nullptr), project(self, w.v, n, width, nullptr)};
    const RotaryView rotary = rotary_of(rows, keep.step, d);
    RotaryArgs turn;
    turn.positions = keep.step.angles;
    turn.cos = rotary.cos;
    turn.sin = rotary.sin;
    turn.n = n;
    turn.d = d;
    self.run([&](Pool& pool, const KernelTable& t) {
        float* base = memory.get(pool);
        for (LinearArgs& product : products) product.x = base + h;
        products[1].y = base + k;
        products[2].y = base + v;
        t.rms_norm(pool, in, norm_weight, base + h, n, width, w.eps);
        t.linears(pool, products, 3);
        const auto rotate = [&](float* heads, i64 count, const float* weight) {
            if (weight != nullptr) t.rms_norm(pool, heads, weight, heads, n * count, d, w.eps);
            turn.x = heads;
            turn.heads = count;
            t.rotary(pool, turn);
        };
        rotate(base + k, keep.kv.hkv, norms.k);
        keep.k = base + k;
        keep.v = base + v;
        t.attention.append(pool, keep);
        rotate(products[0].y, products[0].w.rows / d, norms.q);
    });
}

void attention(Context& self, const Input& q, const Pages& pages, const Rows& rows, const Output& out) {
    const float* data = queries(q, pages, rows);
    AttendArgs args = attend_args(pages, rows, data, length(q, 1, "q"));
    args.out = output<float>(out, "out", {args.step.n, args.hq * args.kv.d});
    if (!rows.sparse || pages.window > 0) {
        self.run([&](Pool& pool, const KernelTable& t) { t.attention.attend(pool, args); });
        return;
    }
    SelectArgs choice = select_args(pages, rows, data, args.hq);
    if (choice.kv.page_size != args.kv.page_size) fail("block_size is not the page size");
    args.budget = choice.topk + choice.local_blocks;
    Memory memory;
    const i64 choices = args.step.n * args.kv.hkv;
    const i64 blocks = memory.add(choices * args.budget), counts = memory.add(choices);
    self.run([&](Pool& pool, const KernelTable& t) {
        i32* base = reinterpret_cast<i32*>(memory.get(pool));
        args.blocks = choice.blocks = base + blocks;
        args.counts = choice.counts = base + counts;
        t.attention.select(pool, choice);
        t.attention.attend(pool, args);
    });
}

void gate_up(Context& self, const Input& x, const GateUpWeights& w, const Output& out) {
    const i64 n = length(x, 0, "x"), width = length(x, 1, "x"), features = rows_of(w.gate);
    const float* in = input<float>(x, "x", {n, width});
    const float* norm_weight = input<float>(w.norm, "norm", {width});
    if (rows_of(w.up) != features) fail("gate and up have different numbers of rows");
    float* y = output<float>(out, "out", {n, features});
    Memory memory;
    const i64 h = memory.add(n * width), u = memory.add(n * features);
    LinearArgs products[2] = {project(self, w.gate, n, width, y), project(self, w.up, n, width, nullptr)};
    self.run([&](Pool& pool, const KernelTable& t) {
        float* base = memory.get(pool);
        products[0].x = products[1].x = base + h;
        products[1].y = base + u;
        t.rms_norm(pool, in, norm_weight, base + h, n, width, w.eps);
        t.linears(pool, products, 2);
        t.silu_mul(pool, y, base + u, y, n * features);
    });
}

}  // namespace

void bind_layer(nb::module_& module, nb::class_<Context>& context) {
    // Weights stay alive as long as what holds them: keep_alive of each Weight argument.
    nb::class_<QkvWeights>(module, "QkvWeights", "Weights of a layer's norm and projections to q, k and v.")
        .def(
            "__init__",
            [](QkvWeights* self, Input norm, float eps, const Weight& q, OptionalInput q_bias, const Weight& k,
               OptionalInput k_bias, const Weight& v, OptionalInput v_bias, OptionalInput q_norm,
               OptionalInput k_norm) {
                new (self) QkvWeights{norm, eps, {&q, q_bias}, {&k, k_bias}, {&v, v_bias}, q_norm, k_norm};
            },
            nb::arg("norm"), nb::arg("eps"), nb::arg("q"), nb::arg("q_bias").none(), nb::arg("k"),
            nb::arg("k_bias").none(), nb::arg("v"), nb::arg("v_bias").none(), nb::arg("q_norm").none(),
            nb::arg("k_norm").none(), nb::keep_alive<1, 4>(), nb::keep_alive<1, 6>(), nb::keep_alive<1, 8>());
    nb::class_<GateUpWeights>(module, "GateUpWeights", "Weights of a layer's norm and projections to gate and up.")
        .def(
            "__init__",
            [](GateUpWeights* self, Input norm, float eps, const Weight& gate, OptionalInput gate_bias,
               const Weight& up, OptionalInput up_bias) {
                new (self) GateUpWeights{norm, eps, {&gate, gate_bias}, {&up, up_bias}};
            },
            nb::arg("norm"), nb::arg("eps"), nb::arg("gate"), nb::arg("gate_bias").none(), nb::arg("up"),
            nb::arg("up_bias").none(), nb::keep_alive<1, 4>(), nb::keep_alive<1, 6>());
    context.def("qkv", &qkv, nb::arg("x"), nb::arg("weights"), nb::arg("pages"), nb::arg("rows"), nb::arg("out"),
                "Norm, project, rotate, append; out: the rotated queries (n, hq * d).");
    context.def("attention", &attention, nb::arg("q"), nb::arg("pages"), nb::arg("rows"), nb::arg("out"),
                "Chooses blocks where the rows are sparse, then attends; out (n, hq * d).");
    context.def("gate_up", &gate_up, nb::arg("x"), nb::arg("weights"), nb::arg("out"),
                "out = silu(gate(norm(x))) * up(norm(x)).");
}

}  // namespace minicpm4
