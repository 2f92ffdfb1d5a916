#define MC_ISA_AVX512_BF16
#define MC_NAMESPACE isa_avx512_bf16
#define MC_NAME "avx512_bf16"
#include <immintrin.h>
#include "core/kernels_impl.hpp"
