// Body of kernels_amx.cpp and kernels_amx_emulated.cpp: the kernels that work on tiles, in namespace
// MC_NAMESPACE. All others of these levels are those of avx512_bf16. Not guarded.
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "kernels.hpp"

#define MC_ISA_AVX512_BF16
#define MC_HAS_TILES

namespace minicpm4 {
namespace MC_NAMESPACE {

#include "simd.hpp"

#include "tile.hpp"

#include "elementwise.hpp"

#include "unpack.hpp"

#include "vnni.hpp"

#include "tiles.hpp"

#include "linear.hpp"

extern const TileKernels kernels = {MC_NAME, linear, linears, probe_tiles};

}  // namespace MC_NAMESPACE
}  // namespace minicpm4
