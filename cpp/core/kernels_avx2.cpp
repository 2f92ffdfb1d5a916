#define MC_ISA_AVX2
#define MC_NAMESPACE isa_avx2
#define MC_NAME "avx2"
#include <immintrin.h>
#include "core/kernels_impl.hpp"
