#define MC_TILES_EMULATED
#define MC_NAMESPACE isa_amx_emulated
#define MC_NAME "amx_emulated"
#include <immintrin.h>
#include "kernels_tiles.hpp"
