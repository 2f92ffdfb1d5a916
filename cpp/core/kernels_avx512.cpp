#define MC_ISA_AVX512
#define MC_NAMESPACE isa_avx512
#define MC_NAME "avx512"
#include <immintrin.h>
#include "core/kernels_impl.hpp"
