// Arguments of the attention kernels: plain views, checked by the bindings and trusted by kernels.
#pragma once

#include "core/common.hpp"

namespace minicpm4 {

class Pool;

enum class KvKind : int { f32, bf16, int8 };

// Compressed keys (pages, hkv, slots, d): float32, or int16 codes times scales (pages, hkv, slots).
struct Compressed {
    void* data = nullptr;
    float* scales = nullptr;  // null: float32
    i64 slots = 0;
};

// Pages of one layer; see KVLayer in kernels/step.py for the layouts. Keys (pages, hkv, d, P) and
// values (pages, hkv, P, d), float32 or bf16 bits; int8 in pairs, times scales (pages, hkv, P).
struct KvView {
    void* keys = nullptr;
    void* values = nullptr;
    float* key_scales = nullptr;
    float* value_scales = nullptr;
    KvKind kind = KvKind::f32;
    i64 pages = 0;
    i64 hkv = 0;
    i64 d = 0;
    i64 page_size = 0;
    i64 window = 0;  // tokens that a row reads, its own included; 0: all before it
    Compressed compressed;
    Compressed coarse;
};

// Rows of one step: sequence j owns rows cu_rows[j] to cu_rows[j + 1] - 1, at consecutive positions;
// its token t is in page page_table[j * max_pages + t / P]. Where rows are trees of drafts, bit b of ancestors[i] says
// that row b of its sequence's is on the path of row i, and angles are the rows' places in the texts that paths make:
// the sequence's first position, and one more for each row before it on its path.
struct StepView {
    const i32* positions = nullptr;
    const i32* angles = nullptr;     // of no tree: positions
    const u64* ancestors = nullptr;  // of no tree: null
    const i32* cu_rows = nullptr;
    const i32* page_table = nullptr;
    i64 n = 0;
    i64 sequences = 0;
    i64 max_pages = 0;
};

// Rotary table (rows, d / 2), attention factor included; read only with use_nope.
struct RotaryView {
    const float* cos = nullptr;
    const float* sin = nullptr;
    i64 rows = 0;
};

// Lengths of compressed keys, in tokens. Number j covers tokens j * stride to j * stride + size - 1.
struct KeyShape {
    i64 size = 0;
    i64 stride = 0;
};

enum : int { kMaxHeadDim = 512 };  // kernels keep as many sums on the stack
enum : int { kCoarse = 4 };  // coarse compressed keys (LSE approximation) are 4 times as long and far apart

struct AppendArgs {
    const float* k = nullptr;  // (n, hkv, d), rotated
    const float* v = nullptr;
    const i32* sources = nullptr;  // (n) in place of k and v: positions that rows are moved from, none below its own
    KvView kv;
    StepView step;
    RotaryView rotary;
    KeyShape key_shape;
    bool use_nope = false;
};

struct SelectArgs {
    const float* q = nullptr;  // (n, hq, d), rotated
    i64 hq = 0;
    KvView kv;
    StepView step;
    RotaryView rotary;
    KeyShape key_shape;
    i64 init_blocks = 0;
    i64 local_blocks = 0;
    i64 topk = 0;
    i64 dense_len = -1;
    bool lse_approx = false;
    bool use_nope = false;
    i32* blocks = nullptr;  // (n, hkv, topk + local_blocks)
    i32* counts = nullptr;  // (n, hkv)
};

struct AttendArgs {
    const float* q = nullptr;  // (n, hq, d), rotated
    i64 hq = 0;
    KvView kv;
    StepView step;
    const i32* blocks = nullptr;  // (n, hkv, budget) ascending, or null: every row reads everything
    const i32* counts = nullptr;  // (n, hkv), -1: every block up to the row's own
    i64 budget = 0;
    float* out = nullptr;  // (n, hq * d)
};

struct AttentionTable {
    void (*append)(Pool&, const AppendArgs&);
    void (*select)(Pool&, const SelectArgs&);
    void (*attend)(Pool&, const AttendArgs&);
};

// Counts one of the parts of some work as done, of which *left were to be done; whether it was the last one.
bool is_last(i64* left);

}  // namespace minicpm4
