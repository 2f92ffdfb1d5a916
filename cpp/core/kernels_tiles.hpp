// Body of kernels_amx.cpp and kernels_amx_emulated.cpp: the kernels that work on tiles, in namespace
// MC_NAMESPACE. All others of these levels are those of avx512_bf16. Not guarded.
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "core/kernels.hpp"
#include "linear/ways.hpp"

#define MC_ISA_AVX512_BF16
#define MC_HAS_TILES

namespace minicpm4 {
namespace MC_NAMESPACE {

#include "simd/simd.hpp"

#include "simd/tile.hpp"

#include "core/elementwise.hpp"

#include "linear/unpack.hpp"

#include "simd/tiles.hpp"

#include "linear/linear.hpp"

#include "attention/attention.hpp"

// Pages that tiles do not take are left to the other kernels; steps of one row are not, or a row would have other bits alone.
static void attend_some(Pool& pool, const AttendArgs& a) {
    if (!has_tiles(a.kv)) return isa_avx512_bf16::table.attention.attend(pool, a);
    attend(pool, a);
}

extern const TileKernels kernels = {MC_NAME, linear, linears, attend_some, probe_tiles};

}  // namespace MC_NAMESPACE
}  // namespace minicpm4
