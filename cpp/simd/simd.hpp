// One vector type V of W floats per instruction set, and the functions that kernels are written in.
//
// Included inside the namespace of the instruction set (MC_ISA_*), once per translation unit:
//   zero, set1, load, loadn (first n lanes, the others 0), store, storen, add, sub, mul, div,
//   fma (a * b + c), max, min (b where either is NaN), nearest (to a whole number, ties to even),
//   load_bf16, load_f16 (and ...n), load_i8, load_bits and load_nibbles (codes in bytes),
//   store_bf16 (to nearest even, NaN stays NaN), f16_to_f32, hsum, hmax, exp, exp2.
// n of loadn and storen is 0 to W (AVX-512: lanes beyond n are not touched, so no fault).


// A value that is loaded once: else compilers fold the load into each of its uses.
#if !defined(__GNUC__) || defined(MC_ISA_SCALAR)
#define MC_KEEP(value) (void)(value)
#elif defined(__AVX512F__)
#define MC_KEEP(value) __asm__("" : "+v"(value))
#else
#define MC_KEEP(value) __asm__("" : "+x"(value))
#endif

#if defined(MC_ISA_AVX512_BF16)
#include "simd/avx512_bf16.hpp"
#elif defined(MC_ISA_AVX512_VNNI)
#include "simd/avx512_vnni.hpp"
#elif defined(MC_ISA_AVX512)
#include "simd/avx512.hpp"
#elif defined(MC_ISA_AVX2) || defined(MC_ISA_AVXVNNI)
#include "simd/avx2.hpp"
#elif defined(MC_ISA_NEON) || defined(MC_ISA_NEON_DOTPROD) || defined(MC_ISA_NEON_I8MM)
#include "simd/neon.hpp"
#else
#include "simd/scalar.hpp"
#endif

#if !defined(MC_HAS_NIBBLES)
// (4 bits of each of the next W bytes) - bias.
template <int SHIFT, int BIAS>
MC_INLINE V load_nibbles(const u8* p) {
    return load_bits<SHIFT, 15, BIAS>(p);
}
#endif

// Whether the unit has vdpbf16ps and vpdpbusd; code that uses them is behind MC_HAS_*.
#if defined(MC_HAS_BF16_DOT)
constexpr bool kHasBf16Dot = true;
#else
constexpr bool kHasBf16Dot = false;
#endif
#if defined(MC_HAS_VNNI)
constexpr bool kHasVnni = true;
#else
constexpr bool kHasVnni = false;
#endif

#if !defined(MC_HAS_HSUM)
MC_INLINE float hsum(V a) {
    float lane[W];
    store(lane, a);
    for (int half = W / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
    }
    return lane[0];
}
#endif

#if !defined(MC_HAS_HSUM4)
// hsum of each.
MC_INLINE void hsum4(V a, V b, V c, V d, float* out) {
    out[0] = hsum(a);
    out[1] = hsum(b);
    out[2] = hsum(c);
    out[3] = hsum(d);
}
#endif

// Largest lane; NaN lanes are passed over.
MC_INLINE float hmax(V a) {
    float lane[W];
    store(lane, a);
    float most = -INFINITY;
    for (int i = 0; i < W; ++i) most = lane[i] > most ? lane[i] : most;
    return most;
}

// e^a within 2 units in the last place; 0 below -105, infinity above 89, NaN for NaN.
MC_INLINE V exp(V a) {
    a = min(set1(89.0F), max(set1(-105.0F), a));
    const V n = nearest(mul(a, set1(1.44269504F)));
    // ln 2 in two parts: n times the first is exact.
    V r = fma(n, set1(-0.693359375F), a);
    r = fma(n, set1(2.12194440e-4F), r);
    // (e^r - 1 - r) / r^2 for |r| < ln 2 / 2, interpolated at Chebyshev points.
    V p = set1(1.3926551e-3F);
    p = fma(p, r, set1(8.363472e-3F));
    p = fma(p, r, set1(4.1666552e-2F));
    p = fma(p, r, set1(1.6666575e-1F));
    p = fma(p, r, set1(0.5F));
    p = add(fma(p, mul(r, r), r), set1(1.0F));
    return times_power(p, n);
}

// 2^a within 2 units in the last place; 0 below -150, infinity above 128, NaN for NaN.
MC_INLINE V exp2(V a) {
    a = min(set1(129.0F), max(set1(-151.0F), a));
    const V n = nearest(a);
    const V r = sub(a, n);
    V p = set1(1.5403530e-4F);
    p = fma(p, r, set1(1.3333558e-3F));
    p = fma(p, r, set1(9.6181291e-3F));
    p = fma(p, r, set1(5.5504109e-2F));
    p = fma(p, r, set1(2.4022651e-1F));
    p = fma(p, r, set1(6.9314718e-1F));
    p = fma(p, r, set1(1.0F));
    return times_power(p, n);
}

// Calls body(begin, end, worker) over [0, count) in chunks of `grain`, by all workers.
template <class Body>
MC_INLINE void parallel(Pool& pool, i64 count, i64 grain, Body& body) {
    pool.run(
        count, grain,
        [](void* data, i64 begin, i64 end, int worker) {
            (*static_cast<Body*>(data))(begin, end, worker);
        },
        &body);
}
