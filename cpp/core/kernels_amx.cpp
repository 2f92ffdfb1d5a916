#define MC_NAMESPACE isa_amx
#define MC_NAME "amx"
#include <immintrin.h>
#include "core/kernels_tiles.hpp"
