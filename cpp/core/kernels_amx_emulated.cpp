#define MC_TILES_EMULATED
#define MC_NAMESPACE isa_amx_emulated
#define MC_NAME "amx_emulated"
#include <immintrin.h>
#include "core/kernels_tiles.hpp"
