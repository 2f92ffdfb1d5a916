#define MC_ISA_AVX512_VNNI
#define MC_NAMESPACE isa_avx512_vnni
#define MC_NAME "avx512_vnni"
#include <immintrin.h>
#include "core/kernels_impl.hpp"
