// Pages of a layer and rows of a step as Python hands them over, and the checked arguments that ops get of them.
#pragma once

#include "attention/api.hpp"
#include "bind/arrays.hpp"

namespace minicpm4 {

// The arrays of KVLayer (kernels/step.py), kept alive; checked when an op reads them.
struct Pages {
    Output keys, values;
    OptionalOutput key_scales, value_scales, compressed, compressed_scales, coarse, coarse_scales;
    i64 window;  // see KvView
};

// The arrays and sparse settings of Step; without `sparse` no compressed keys are written or read.
struct Rows {
    Input positions, cu_rows, page_table, cos, sin;
    OptionalInput ancestors, angles;  // of Step.tree
    bool sparse;
    i64 kernel_size, kernel_stride, init_blocks, local_blocks, topk, block_size, dense_len;
    bool lse_approx, use_nope;
};

// Raise ValueError unless pages and rows fit together; pointers to data are the caller's to add.
AppendArgs append_args(const Pages& pages, const Rows& rows);
SelectArgs select_args(const Pages& pages, const Rows& rows, const float* q, i64 hq);
AttendArgs attend_args(const Pages& pages, const Rows& rows, const float* q, i64 hq);

// The rotary table, which has an angle for every row. Raises ValueError else.
RotaryView rotary_of(const Rows& rows, const StepView& step, i64 d);

// q (n, hq, d), its shape checked against the pages.
const float* queries(const Input& q, const Pages& pages, const Rows& rows);

}  // namespace minicpm4
