#define MC_NAMESPACE isa_amx
#define MC_NAME "amx"
#include <immintrin.h>
#include "kernels_tiles.hpp"
