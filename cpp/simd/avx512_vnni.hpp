// AVX-512 with VNNI: vectors of 32 int16 and of 16 int32, for linear/pairs.hpp and panels.hpp. Everything else is
// simd/avx512.hpp.
#include "simd/avx512.hpp"

#define MC_HAS_VNNI

#include "simd/vnni.hpp"

#define MC_HAS_INTS
#define MC_HAS_PAIRS
#define MC_HAS_PANELS
struct Words {
    __m512i v;
};
struct Ints {
    __m512i v;
};

MC_INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
MC_INLINE Words load_words(const void* p) { return {_mm512_loadu_si512(p)}; }
MC_INLINE void store_words(void* p, Words a) { _mm512_store_si512(p, a.v); }
// 16 integers as int16: of each four the first and third, then the second and fourth.
MC_INLINE void store_crossed(void* p, const Ints* q) {
    const __m256i order = _mm256_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15, 0, 1, 4, 5, 2, 3, 6, 7, 8, 9,
                                           12, 13, 10, 11, 14, 15);
    _mm256_storeu_si256(static_cast<__m256i*>(p), _mm256_shuffle_epi8(_mm512_cvtepi32_epi16(q[0].v), order));
}
MC_INLINE void prefetch_far(const void* p) { _mm_prefetch(static_cast<const char*>(p) + 16384, _MM_HINT_T1); }
MC_INLINE Words all_words(int x) { return {_mm512_set1_epi16(static_cast<short>(x))}; }
MC_INLINE Words all_pairs(u32 pair) { return {_mm512_set1_epi32(static_cast<i32>(pair))}; }
MC_INLINE Ints no_ints() {
    Ints zeros;
    MC_ZERO(zeros.v);
    return zeros;
}
// sum + a * b, two neighbours in a lane.
MC_INLINE Ints dot_tile(Ints sum, Words a, Words b) { return {add_word_products(sum.v, a.v, b.v)}; }
// The same with one b for all lanes, a pair from memory.
MC_INLINE void dot_pair(Ints& sum, Words a, const u8* b) { sum_word_products(sum.v, a.v, b); }
MC_INLINE Ints all_ints(i32 x) { return {_mm512_set1_epi32(x)}; }
// 256 high + low.
MC_INLINE Ints join_halves(Ints high, Ints low) { return {_mm512_add_epi32(_mm512_slli_epi32(high.v, 8), low.v)}; }
// Of each pair of bytes the lower and the upper one as words, signed or not.
MC_INLINE Words low_bytes(Words a) { return {_mm512_srai_epi16(_mm512_slli_epi16(a.v, 8), 8)}; }
MC_INLINE Words high_bytes(Words a) { return {_mm512_srai_epi16(a.v, 8)}; }
MC_INLINE Words low_unsigned(Words a) { return {_mm512_and_si512(a.v, _mm512_set1_epi16(255))}; }
MC_INLINE Words high_unsigned(Words a) { return {_mm512_srli_epi16(a.v, 8)}; }
MC_INLINE V to_floats(Ints a) { return from_i32(a.v); }
MC_INLINE Ints round_to_ints(V a) { return {_mm512_cvtps_epi32(a.v)}; }
// 16 integers of at most 127 as signed bytes.
MC_INLINE void store_bytes(void* p, const Ints* q) {
    _mm_storeu_si128(static_cast<__m128i*>(p), _mm512_cvtepi32_epi8(q->v));
}
// 16 integers q of at most 32512 as signed bytes: q = 256 high + low.
MC_INLINE void store_halves(void* high, void* low, const Ints* q) {
    store_bytes(low, q);
    const Ints upper = {_mm512_srai_epi32(_mm512_add_epi32(q->v, _mm512_set1_epi32(128)), 8)};
    store_bytes(high, &upper);
}
// 16 integers as int16.
MC_INLINE void store_int16(void* p, const Ints* q) {
    _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtepi32_epi16(q[0].v));
}
// Of four bytes in each dword, codes of BITS bits in their field `part` (8 bits: signed): bytes 2 i and 2 i + 1 as a pair
// of int16, less bias.
template <int BITS>
MC_INLINE Words byte_pairs(Words raw, int part, int i, Words bias) {
    // Byte 4 d + b of a lane to half b of dword d, its other byte zero; 8 bits to the upper byte, where their sign is.
    const __m512i low = _mm512_broadcast_i32x4(_mm_setr_epi32(
        static_cast<i32>(0x80018000U), static_cast<i32>(0x80058004U), static_cast<i32>(0x80098008U),
        static_cast<i32>(0x800d800cU)));
    const __m512i bytes = _mm512_srli_epi32(raw.v, static_cast<unsigned>(16 * i));
    if (BITS == 8) return {_mm512_srai_epi16(_mm512_shuffle_epi8(bytes, _mm512_rol_epi32(low, 8)), 8)};
    const __m512i words = _mm512_srli_epi16(_mm512_shuffle_epi8(bytes, low), static_cast<unsigned>(part * BITS));
    return {_mm512_sub_epi16(_mm512_and_si512(words, _mm512_set1_epi16((1 << BITS) - 1)), bias.v)};
}
// Transposes 16 x 16 words of 32 bits.
MC_INLINE void transpose_pairs(Words* v) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    constexpr __mmask16 kOdd[] = {0xaaaa, 0xcccc, 0xf0f0, 0xff00};
    MC_UNROLL
    for (int step = 0; step < 4; ++step) {
        const int d = 1 << step;
        const __m512i low = _mm512_mask_add_epi32(lane, kOdd[step], lane, _mm512_set1_epi32(16 - d));
        const __m512i high = _mm512_mask_add_epi32(_mm512_add_epi32(lane, _mm512_set1_epi32(d)), kOdd[step],
                                                   lane, _mm512_set1_epi32(16));
        MC_UNROLL
        for (int i = 0; i < 16; ++i) {
            if ((i & d) != 0) continue;
            const __m512i a = v[i].v, b = v[i + d].v;
            v[i].v = _mm512_permutex2var_epi32(a, low, b);
            v[i + d].v = _mm512_permutex2var_epi32(a, high, b);
        }
    }
}
