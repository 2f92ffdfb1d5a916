// The functions that each instruction set supplies, and their arguments. Plain data only.
//
// Arguments are checked by the bindings: a kernel trusts its shapes and indices.
#pragma once

#include "attention/api.hpp"
#include "core/common.hpp"
#include "core/pool.hpp"
#include "linear/matrix.hpp"

namespace minicpm4 {

// y = x W^T + bias, or with `add`: y += scale * (x W^T + bias). x (n, cols), y (n, rows). With `bytes` x may be
// rounded to 8 bits where weights are in panels.
struct LinearArgs {
    Matrix w;
    const float* x = nullptr;
    const float* bias = nullptr;
    float* y = nullptr;
    i64 n = 0;
    float scale = 1.0F;
    bool add = false;
    bool bytes = false;
};

struct EmbedArgs {
    Matrix table;
    const i32* ids = nullptr;
    float* y = nullptr;
    i64 n = 0;
    float scale = 1.0F;
};

struct RotaryArgs {
    float* x = nullptr;  // (n, heads, d), rotated in place
    const i32* positions = nullptr;
    const float* cos = nullptr;  // (positions, d / 2)
    const float* sin = nullptr;
    i64 n = 0, heads = 0, d = 0;
};

struct KernelTable {
    const char* name;  // a level of linear/ways.hpp
    void (*linear)(Pool&, const LinearArgs&);
    void (*linears)(Pool&, const LinearArgs*, i64 count);  // the same x and n in all
    void (*embed)(Pool&, const EmbedArgs&);
    void (*rms_norm)(Pool&, const float* x, const float* weight, float* y, i64 rows, i64 width, float eps);
    void (*rotary)(Pool&, const RotaryArgs&);
    void (*silu_mul)(Pool&, const float* gate, const float* up, float* y, i64 size);
    void (*add_scaled)(Pool&, float* x, const float* y, float scale, i64 size);
    void (*log_sum_exp)(Pool&, const float* x, float* y, i64 rows, i64 width);
    void (*top_k)(Pool&, const float* x, float* values, i32* columns, i64 rows, i64 width, i64 k);
    void (*matmul)(Pool&, const float* a, const float* b, float* c, i64 m, i64 n, i64 k);
    AttentionTable attention;
};

// What a level with matrix tiles has in place of avx512_bf16's kernels. probe multiplies a tile a (16, 64 bytes) by b
// in each way there is; levels that work agree on c (3, 16, 64 bytes).
struct TileKernels {
    const char* name;
    void (*linear)(Pool&, const LinearArgs&);
    void (*linears)(Pool&, const LinearArgs*, i64 count);
    void (*attend)(Pool&, const AttendArgs&);
    void (*probe)(const void* a, const void* b, void* c);
};

namespace isa_scalar {
extern const KernelTable table;
}
namespace isa_avx2 {
extern const KernelTable table;
}
namespace isa_avxvnni {
extern const KernelTable table;
}
namespace isa_avx512_vnni {
extern const KernelTable table;
}
namespace isa_avx512 {
extern const KernelTable table;
}
namespace isa_avx512_bf16 {
extern const KernelTable table;
}
namespace isa_amx {
extern const TileKernels kernels;
}
namespace isa_amx_emulated {
extern const TileKernels kernels;
}
namespace isa_neon {
extern const KernelTable table;
}
namespace isa_neon_dotprod {
extern const KernelTable table;
}
namespace isa_neon_i8mm {
extern const KernelTable table;
}

}  // namespace minicpm4
