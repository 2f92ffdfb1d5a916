// AVX-512 with VNNI and the dot products of BF16: pairs of bf16 into float32. Everything else is simd/avx512_vnni.hpp.
#include "simd/avx512_vnni.hpp"

#define MC_HAS_BF16_DOT

// 32 bf16 values, for linear/floats.hpp. Numbers below the normal ones count as 0.
struct BF16s {
    __m512bh v;
};
MC_INLINE BF16s load_bf16s(const u16* p) { return {reinterpret_cast<__m512bh>(_mm512_loadu_si512(p))}; }
MC_INLINE void store_bf16s(u16* p, V a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(a.v)));
}
MC_INLINE BF16s join_bf16(V low, V high) { return {_mm512_cvtne2ps_pbh(high.v, low.v)}; }
// sum + a * b, two neighbours in a lane.
MC_INLINE V dot_bf16(V sum, BF16s a, BF16s b) { return {_mm512_dpbf16_ps(sum.v, a.v, b.v)}; }
