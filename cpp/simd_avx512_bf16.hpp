// AVX-512 with its dot products: BF16 (pairs of bf16 into float32) and VNNI (fours of bytes into
// int32). Everything else is simd_avx512.hpp.
#include "simd_avx512.hpp"

#define MC_HAS_BF16_DOT
#define MC_HAS_VNNI
