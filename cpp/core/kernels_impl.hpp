// Body of each kernels_*.cpp: compiles every kernel for the instruction set MC_ISA_* in namespace
// MC_NAMESPACE and exports its table. Not guarded: a translation unit includes it once.
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "core/kernels.hpp"
#include "linear/ways.hpp"

namespace minicpm4 {
namespace MC_NAMESPACE {

#include "simd/simd.hpp"

#include "simd/tile.hpp"

#include "core/elementwise.hpp"

#include "linear/unpack.hpp"

#include "linear/linear.hpp"

#include "attention/attention.hpp"

extern const KernelTable table = {MC_NAME, linear,     linears,     embed, rms_norm, rotary,
                                  silu_mul, add_scaled, log_sum_exp, top_k, matmul,   attention_table};

}  // namespace MC_NAMESPACE
}  // namespace minicpm4
