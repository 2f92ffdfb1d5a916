// Bindings of append, settle, select and attend.
#include "bind/attention_args.hpp"

namespace minicpm4 {
namespace {

void append(Context& self, const Input& k, const Input& v, const Pages& pages, const Rows& rows) {
    AppendArgs args = append_args(pages, rows);
    args.k = input<float>(k, "k", {args.step.n, args.kv.hkv, args.kv.d});
    args.v = input<float>(v, "v", {args.step.n, args.kv.hkv, args.kv.d});
    self.run([&](Pool& pool, const KernelTable& t) { t.attention.append(pool, args); });
}

void settle(Context& self, const Pages& pages, const Rows& rows, const Input& given) {
    const Input sources = copied(given);
    AppendArgs args = append_args(pages, rows);
    const StepView& step = args.step;
    args.sources = input<i32>(sources, "sources", {step.n});
    for (i64 s = 0; s < step.sequences; ++s) {
        i64 before = -1;
        for (i64 row = step.cu_rows[s]; row < step.cu_rows[s + 1]; ++row) {
            const i64 from = args.sources[row];
            if (from <= before || from < step.positions[row] || from / args.kv.page_size >= step.max_pages) {
                fail("sources holds " + std::to_string(from) + " for a row at position " +
                     std::to_string(step.positions[row]) + ": they must ascend, within the page table");
            }
            before = from;
        }
        if (before < 0) continue;
        check_range(step.page_table + s * step.max_pages, before / args.kv.page_size + 1, 0, args.kv.pages, "page_table");
    }
    self.run([&](Pool& pool, const KernelTable& t) { t.attention.append(pool, args); });
}

void select(Context& self, const Input& q, const Pages& pages, const Rows& rows, const Output& blocks,
            const Output& counts) {
    SelectArgs args = select_args(pages, rows, queries(q, pages, rows), length(q, 1, "q"));
    args.blocks = output<i32>(blocks, "blocks", {args.step.n, args.kv.hkv, args.topk + args.local_blocks});
    args.counts = output<i32>(counts, "counts", {args.step.n, args.kv.hkv});
    self.run([&](Pool& pool, const KernelTable& t) { t.attention.select(pool, args); });
}

// Chosen blocks must be ascending, at or before the row's own block.
void check_selection(const AttendArgs& a) {
    for (i64 i = 0; i < a.step.n * a.kv.hkv; ++i) {
        const i64 count = a.counts[i];
        if (count < -1 || count > a.budget) {
            fail("counts holds " + std::to_string(count) + ", outside -1 to " + std::to_string(a.budget));
        }
        const i64 own = a.step.positions[i / a.kv.hkv] / a.kv.page_size;
        i64 before = -1;
        for (i64 j = 0; j < count; ++j) {
            const i64 block = a.blocks[i * a.budget + j];
            if (block <= before || block > own) {
                fail("blocks holds " + std::to_string(block) + " for a row whose own block is " +
                     std::to_string(own) + ": they must ascend from 0 to that");
            }
            before = block;
        }
    }
}

void attend(Context& self, const Input& q, const Pages& pages, const Rows& rows, OptionalInput blocks,
            OptionalInput counts, const Output& out) {
    if (blocks) blocks = copied(*blocks);
    if (counts) counts = copied(*counts);
    AttendArgs args = attend_args(pages, rows, queries(q, pages, rows), length(q, 1, "q"));
    if (blocks && pages.window > 0) fail("a layer with a window has no chosen blocks");
    if (blocks.has_value() != counts.has_value()) fail("blocks and counts go together");
    if (blocks) {
        args.budget = length(*blocks, 2, "blocks");
        args.blocks = input<i32>(*blocks, "blocks", {args.step.n, args.kv.hkv, args.budget});
        args.counts = input<i32>(*counts, "counts", {args.step.n, args.kv.hkv});
        check_selection(args);
    }
    args.out = output<float>(out, "out", {args.step.n, args.hq * args.kv.d});
    self.run([&](Pool& pool, const KernelTable& t) { t.attention.attend(pool, args); });
}

}  // namespace

void bind_attention(nb::module_& module, nb::class_<Context>& context) {
    nb::class_<Pages>(module, "Pages", "The arrays of a layer's pages.")
        .def("__init__",
             [](Pages* self, Output keys, Output values, OptionalOutput key_scales, OptionalOutput value_scales,
                OptionalOutput compressed, OptionalOutput compressed_scales, OptionalOutput coarse,
                OptionalOutput coarse_scales, i64 window) {
                 new (self) Pages{keys,       values,            key_scales, value_scales,
                                  compressed, compressed_scales, coarse,     coarse_scales, window};
             },
             nb::arg("keys"), nb::arg("values"), nb::arg("key_scales").none(), nb::arg("value_scales").none(),
             nb::arg("compressed").none(), nb::arg("compressed_scales").none(), nb::arg("coarse").none(),
             nb::arg("coarse_scales").none(), nb::arg("window"));
    nb::class_<Rows>(module, "Rows", "The rows of a step, and the settings of sparse attention.")
        .def("__init__",
             [](Rows* self, Input positions, Input cu_rows, Input page_table, Input cos, Input sin,
                OptionalInput ancestors, OptionalInput angles, bool sparse, i64 kernel_size, i64 kernel_stride,
                i64 init_blocks, i64 local_blocks, i64 topk, i64 block_size, i64 dense_len, bool lse_approx,
                bool use_nope) {
                 new (self) Rows{copied(positions),
                                 copied(cu_rows),
                                 copied(page_table),
                                 cos,
                                 sin,
                                 ancestors ? copied(*ancestors) : ancestors,
                                 angles ? copied(*angles) : angles,
                                 sparse,
                                 kernel_size,
                                 kernel_stride,
                                 init_blocks,
                                 local_blocks,
                                 topk,
                                 block_size,
                                 dense_len,
                                 lse_approx,
                                 use_nope};
             },
             nb::arg("positions"), nb::arg("cu_rows"), nb::arg("page_table"), nb::arg("cos"), nb::arg("sin"),
             nb::arg("ancestors").none(), nb::arg("angles").none(),
             nb::arg("sparse"), nb::arg("kernel_size"), nb::arg("kernel_stride"), nb::arg("init_blocks"),
             nb::arg("local_blocks"), nb::arg("topk"), nb::arg("block_size"), nb::arg("dense_len"),
             nb::arg("lse_approx"), nb::arg("use_nope"));
    context.def("append", &append, nb::arg("k"), nb::arg("v"), nb::arg("pages"), nb::arg("rows"),
                "Stores keys and values in pages, and the compressed keys that end in them.");
    context.def("settle", &settle, nb::arg("pages"), nb::arg("rows"), nb::arg("sources"),
                "Moves keys and values of rows from the positions `sources` to their own; then as append.");
    context.def("select", &select, nb::arg("q"), nb::arg("pages"), nb::arg("rows"), nb::arg("blocks"),
                nb::arg("counts"), "Chooses blocks for each row and kv head.");
    context.def("attend", &attend, nb::arg("q"), nb::arg("pages"), nb::arg("rows"), nb::arg("blocks").none(),
                nb::arg("counts").none(), nb::arg("out"),
                "out (n, hq * d): softmax attention over all or the chosen blocks.");
}

}  // namespace minicpm4
