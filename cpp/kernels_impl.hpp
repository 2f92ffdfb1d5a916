// Body of each kernels_*.cpp: compiles every kernel for the instruction set MC_ISA_* in namespace
// MC_NAMESPACE and exports its table. Not guarded: a translation unit includes it once.
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "kernels.hpp"

namespace minicpm4 {
namespace MC_NAMESPACE {

#include "simd.hpp"

#include "tile.hpp"

#include "elementwise.hpp"

#include "unpack.hpp"

#include "linear.hpp"

#include "attention.hpp"

extern const KernelTable table = {MC_NAME, kHasPanels, kHasVnni, kHasVnni,   linear,      linears, embed,  rms_norm,
                                  rotary,  silu_mul,   add_scaled, log_sum_exp, top_k,   matmul, attention_table};

}  // namespace MC_NAMESPACE
}  // namespace minicpm4
