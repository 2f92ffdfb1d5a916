// Integer dot products of AVX-512 VNNI. Included inside the namespace of the instruction set.
//
// As intrinsics they cost gcc 12 a copy of the sum each, twice the instructions in all, and registers spilt
// to the stack, once there are many sums; hence assembly (measured in docs/log.md; attention, with fewer sums, loses
// by it and keeps the intrinsic).

// A value that is loaded once: else compilers fold the load into each of its uses. A zero that is
// made where it is needed, which costs nothing: else compilers copy one, which does.
#if defined(__GNUC__)
#define MC_KEEP(value) __asm__("" : "+v"(value))
#define MC_ZERO(value) __asm__ volatile("vpxord %0, %0, %0" : "=v"(value))
#else
#define MC_KEEP(value) (void)(value)
#define MC_ZERO(value) value = _mm512_setzero_si512()
#endif

// Each 32-bit sum plus the products of its two pairs of signed 16-bit integers.
MC_INLINE __m512i add_word_products(__m512i sum, __m512i a, __m512i b) {
#if defined(__GNUC__)
    __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "vm"(b));
    return sum;
#else
    return _mm512_dpwssd_epi32(sum, a, b);
#endif
}

// Each 32-bit sum plus the products of its four unsigned bytes of `a` and signed bytes of `b`.
MC_INLINE __m512i add_byte_products(__m512i sum, __m512i a, __m512i b) {
#if defined(__GNUC__)
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "vm"(b));
    return sum;
#else
    return _mm512_dpbusd_epi32(sum, a, b);
#endif
}
