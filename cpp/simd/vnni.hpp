// Integer dot products of VNNI on vectors of W lanes: AVX-512's on 512 bits, AVX-VNNI's on 256. Included inside the
// namespace of the instruction set.
//
// As intrinsics they cost gcc 12 a copy of the sum each, twice the instructions in all, and registers spilt
// to the stack, once there are many sums; hence assembly (measured in docs/log.md; attention, with fewer sums, loses
// by it and keeps the intrinsic).

#if defined(MC_ISA_AVXVNNI)
using IntLanes = __m256i;
MC_INLINE IntLanes all_lanes(i32 x) { return _mm256_set1_epi32(x); }
#else
using IntLanes = __m512i;
MC_INLINE IntLanes all_lanes(i32 x) { return _mm512_set1_epi32(x); }
#endif
MC_INLINE IntLanes four_everywhere(const u8* four) {
    i32 word;
    memcpy(&word, four, sizeof word);
    return all_lanes(word);
}

// A zero that is made where it is needed, which costs nothing: else compilers copy one, which does.
#if defined(__GNUC__) && defined(MC_HAS_AVX512)
#define MC_ZERO(value) __asm__ volatile("vpxord %0, %0, %0" : "=v"(value))
#elif defined(__GNUC__)
#define MC_ZERO(value) __asm__ volatile("vpxor %0, %0, %0" : "=x"(value))
#elif defined(MC_HAS_AVX512)
#define MC_ZERO(value) value = _mm512_setzero_si512()
#else
#define MC_ZERO(value) value = _mm256_setzero_si256()
#endif

// Each 32-bit sum plus the products of its two pairs of signed 16-bit integers.
MC_INLINE IntLanes add_word_products(IntLanes sum, IntLanes a, IntLanes b) {
#if defined(__GNUC__) && defined(MC_ISA_AVXVNNI)
    __asm__("%{vex%} vpdpwssd %2, %1, %0" : "+x"(sum) : "x"(a), "xm"(b));
    return sum;
#elif defined(__GNUC__)
    __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "vm"(b));
    return sum;
#elif defined(MC_ISA_AVXVNNI)
    return _mm256_dpwssd_avx_epi32(sum, a, b);
#else
    return _mm512_dpwssd_epi32(sum, a, b);
#endif
}

// Each 32-bit sum plus the products of its four unsigned bytes of `a` and signed bytes of `b`.
MC_INLINE IntLanes add_byte_products(IntLanes sum, IntLanes a, IntLanes b) {
#if defined(__GNUC__) && defined(MC_ISA_AVXVNNI)
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(a), "xm"(b));
    return sum;
#elif defined(__GNUC__)
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "vm"(b));
    return sum;
#elif defined(MC_ISA_AVXVNNI)
    return _mm256_dpbusd_avx_epi32(sum, a, b);
#else
    return _mm512_dpbusd_epi32(sum, a, b);
#endif
}

// The same with one b for all lanes, four bytes from memory, and in place: of sums that are members of a struct GCC copies
// some otherwise.
MC_INLINE void sum_word_products(IntLanes& sum, IntLanes a, const u8* b) {
#if defined(__GNUC__) && !defined(MC_ISA_AVXVNNI)
    __asm__("vpdpwssd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(a), "m"(*reinterpret_cast<const u32*>(b)));
#elif defined(__GNUC__)
    __asm__("%{vex%} vpdpwssd %2, %1, %0" : "+x"(sum) : "x"(a), "x"(four_everywhere(b)));
#else
    sum = add_word_products(sum, a, four_everywhere(b));
#endif
}

MC_INLINE void sum_byte_products(IntLanes& sum, IntLanes a, const u8* b) {
#if defined(__GNUC__) && !defined(MC_ISA_AVXVNNI)
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(a), "m"(*reinterpret_cast<const u32*>(b)));
#elif defined(__GNUC__)
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(a), "x"(four_everywhere(b)));
#else
    sum = add_byte_products(sum, a, four_everywhere(b));
#endif
}
