// The coarse ops of a layer, each in one call, and several layers in one: between the kernels of a call there is no
// Python, and what passes from one to the next stays in the pool's memory. They are the compositions of
// kernels/contract.py, and model/forward.py's of a layer.
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

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

// What the ops do once their arguments are checked: without the interpreter's lock, one after another.

struct QkvWork {
    AppendArgs keep;
    LinearArgs products[3];
    RotaryArgs turn;
    const float *x = nullptr, *norm = nullptr, *q_norm = nullptr, *k_norm = nullptr;
    float eps = 0;
    i64 width = 0;

    void operator()(Pool& pool, const KernelTable& t) {
        const i64 n = keep.step.n, d = keep.kv.d, kv_width = keep.kv.hkv * d;
        Memory memory;
        const i64 h = memory.add(n * width), k = memory.add(n * kv_width), v = memory.add(n * kv_width);
        float* base = memory.get(pool);
        for (LinearArgs& product : products) product.x = base + h;
        products[1].y = base + k;
        products[2].y = base + v;
        t.rms_norm(pool, x, norm, base + h, n, width, eps);
        t.linears(pool, products, 3);
        const auto rotate = [&](float* heads, i64 count, const float* weight) {
            if (weight != nullptr) t.rms_norm(pool, heads, weight, heads, n * count, d, eps);
            turn.x = heads;
            turn.heads = count;
            t.rotary(pool, turn);
        };
        rotate(base + k, keep.kv.hkv, k_norm);
        keep.k = base + k;
        keep.v = base + v;
        t.attention.append(pool, keep);
        rotate(products[0].y, products[0].w.rows / d, q_norm);
    }
};

// Of x (n, width), into out (n, hq * d).
QkvWork qkv_work(const Context& self, const float* x, i64 width, const QkvWeights& w, const Pages& pages,
                 const Rows& rows, float* out) {
    QkvWork work;
    work.keep = append_args(pages, rows);
    const i64 n = work.keep.step.n, d = work.keep.kv.d, kv_width = work.keep.kv.hkv * d;
    work.x = x;
    work.norm = input<float>(w.norm, "norm", {width});
    work.eps = w.eps;
    work.width = width;
    if (rows_of(w.k) != kv_width || rows_of(w.v) != kv_width || rows_of(w.q) % d != 0) {
        fail("projections do not fit pages of " + std::to_string(work.keep.kv.hkv) + " heads of " + std::to_string(d));
    }
    if (w.q_norm) work.q_norm = input<float>(*w.q_norm, "q_norm", {d});
    if (w.k_norm) work.k_norm = input<float>(*w.k_norm, "k_norm", {d});
    work.products[0] = project(self, w.q, n, width, out);
    work.products[1] = project(self, w.k, n, width, nullptr);
    work.products[2] = project(self, w.v, n, width, nullptr);
    const RotaryView rotary = rotary_of(rows, work.keep.step, d);
    work.turn.positions = work.keep.step.angles;
    work.turn.cos = rotary.cos;
    work.turn.sin = rotary.sin;
    work.turn.n = n;
    work.turn.d = d;
    return work;
}

struct AttentionWork {
    AttendArgs args;
    SelectArgs choice;
    bool chooses = false;

    void operator()(Pool& pool, const KernelTable& t) {
        if (chooses) {
            Memory memory;
            const i64 choices = args.step.n * args.kv.hkv;
            const i64 blocks = memory.add(choices * args.budget), counts = memory.add(choices);
            i32* base = reinterpret_cast<i32*>(memory.get(pool));
            args.blocks = choice.blocks = base + blocks;
            args.counts = choice.counts = base + counts;
            t.attention.select(pool, choice);
        }
        t.attention.attend(pool, args);
    }
};

// Of q (n, hq, d), into out (n, hq * d).
AttentionWork attention_work(const float* q, i64 hq, const Pages& pages, const Rows& rows, float* out) {
    AttentionWork work;
    work.args = attend_args(pages, rows, q, hq);
    work.args.out = out;
    work.chooses = rows.sparse && pages.window == 0;
    if (work.chooses) {
        work.choice = select_args(pages, rows, q, hq);
        // No row has more blocks than the page table: memory is taken for those alone.
        const i64 most = work.choice.step.max_pages;
        work.choice.topk = std::min(work.choice.topk, most);
        work.choice.init_blocks = std::min(work.choice.init_blocks, most);
        work.choice.local_blocks = std::min(work.choice.local_blocks, most);
        work.args.budget = work.choice.topk + work.choice.local_blocks;
    }
    return work;
}

struct GateUpWork {
    LinearArgs products[2];
    const float *x = nullptr, *norm = nullptr;
    float eps = 0;
    i64 width = 0;

    void operator()(Pool& pool, const KernelTable& t) {
        const i64 n = products[0].n, features = products[0].w.rows;
        float* y = products[0].y;
        Memory memory;
        const i64 h = memory.add(n * width), u = memory.add(n * features);
        float* base = memory.get(pool);
        products[0].x = products[1].x = base + h;
        products[1].y = base + u;
        t.rms_norm(pool, x, norm, base + h, n, width, eps);
        t.linears(pool, products, 2);
        t.silu_mul(pool, y, base + u, y, n * features);
    }
};

// Of x (n, width), into out (n, rows of gate).
GateUpWork gate_up_work(const Context& self, const float* x, i64 n, i64 width, const GateUpWeights& w, float* out) {
    GateUpWork work;
    work.x = x;
    work.norm = input<float>(w.norm, "norm", {width});
    work.eps = w.eps;
    work.width = width;
    if (rows_of(w.up) != rows_of(w.gate)) fail("gate and up have different numbers of rows");
    work.products[0] = project(self, w.gate, n, width, out);
    work.products[1] = project(self, w.up, n, width, nullptr);
    return work;
}

void qkv(Context& self, const Input& x, const QkvWeights& w, const Pages& pages, const Rows& rows, const Output& out) {
    const i64 n = length(rows.positions, 0, "positions"), width = length(x, 1, "x");
    self.run(qkv_work(self, input<float>(x, "x", {n, width}), width, w, pages, rows,
                      output<float>(out, "out", {n, rows_of(w.q)})));
}

void attention(Context& self, const Input& q, const Pages& pages, const Rows& rows, const Output& out) {
    const float* data = queries(q, pages, rows);
    const i64 n = length(q, 0, "q"), hq = length(q, 1, "q"), d = length(q, 2, "q");
    self.run(attention_work(data, hq, pages, rows, output<float>(out, "out", {n, hq * d})));
}

void gate_up(Context& self, const Input& x, const GateUpWeights& w, const Output& out) {
    const i64 n = length(x, 0, "x"), width = length(x, 1, "x");
    self.run(gate_up_work(self, input<float>(x, "x", {n, width}), n, width, w,
                          output<float>(out, "out", {n, rows_of(w.gate)})));
}

// Weights of a layer, and its pages.
using Layer = std::tuple<const QkvWeights*, const Weight*, OptionalInput, const GateUpWeights*, const Weight*,
                         OptionalInput, const Pages*>;

struct LayerWork {
    QkvWork qkv;
    AttentionWork attention;
    LinearArgs o;
    GateUpWork gate_up;
    LinearArgs down;
};

// x += scale * (of W^T + bias).
LinearArgs residual(const Context& self, const Weight& weight, const OptionalInput& bias, i64 n, i64 cols,
                    const float* of, float scale, float* x, i64 width) {
    LinearArgs args = project(self, {&weight, bias}, n, cols, x);
    if (args.w.rows != width) {
        fail("a weight has " + std::to_string(args.w.rows) + " rows for " + std::to_string(width) + " columns of x");
    }
    args.x = of;
    args.scale = scale;
    args.add = true;
    return args;
}

void layers(Context& self, const Output& x, const std::vector<Layer>& listed, const Rows& rows, float scale,
            const Output& q, const Output& a, const Output& h) {
    const i64 n = length(rows.positions, 0, "positions"), width = length(x, 1, "x");
    float* data = output<float>(x, "x", {n, width});
    std::vector<LayerWork> work;
    work.reserve(listed.size());
    std::vector<nb::object> owners;
    owners.reserve(5 * listed.size());
    for (const auto& [first, o, o_bias, second, down, down_bias, pages] : listed) {
        const i64 heads = rows_of(first->q), features = rows_of(second->gate);
        float* queries = output<float>(q, "q", {n, heads});
        float* attended = output<float>(a, "a", {n, heads});
        float* inner = output<float>(h, "h", {n, features});
        owners.insert(owners.end(), {owner(first), owner(o), owner(second), owner(down), owner(pages)});
        LayerWork one;
        one.qkv = qkv_work(self, data, width, *first, *pages, rows, queries);
        one.attention = attention_work(queries, heads / one.qkv.keep.kv.d, *pages, rows, attended);
        one.o = residual(self, *o, o_bias, n, heads, attended, scale, data, width);
        one.gate_up = gate_up_work(self, data, n, width, *second, inner);
        one.down = residual(self, *down, down_bias, n, features, inner, scale, data, width);
        work.push_back(one);
    }
    self.run([&](Pool& pool, const KernelTable& t) {
        for (LayerWork& one : work) {
            one.qkv(pool, t);
            one.attention(pool, t);
            t.linear(pool, one.o);
            one.gate_up(pool, t);
            t.linear(pool, one.down);
        }
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
    context.def("layers", &layers, nb::arg("x"), nb::arg("layers"), nb::arg("rows"), nb::arg("scale"), nb::arg("q"),
                nb::arg("a"), nb::arg("h"),
                "x after layers, in place: (qkv weights, o, o's bias, gate and up, down, down's bias, pages) each; "
                "q, a, h: memory for queries, attention, feed-forward.");
}

}  // namespace minicpm4
