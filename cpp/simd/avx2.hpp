// AVX2 with FMA and F16C, or with AVX-VNNI, too: 8 floats. See simd/simd.hpp for what each function does.

constexpr int W = 8;
constexpr int kTileRows = 6;

struct V {
    __m256 v;
};

MC_INLINE __m256i lanes(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
MC_INLINE V zero() { return {_mm256_setzero_ps()}; }
MC_INLINE V set1(float x) { return {_mm256_set1_ps(x)}; }
MC_INLINE V load(const float* p) { return {_mm256_loadu_ps(p)}; }
MC_INLINE V loadn(const float* p, int n) { return {_mm256_maskload_ps(p, lanes(n))}; }
MC_INLINE void store(float* p, V a) { _mm256_storeu_ps(p, a.v); }
MC_INLINE void storen(float* p, V a, int n) { _mm256_maskstore_ps(p, lanes(n), a.v); }
MC_INLINE V add(V a, V b) { return {_mm256_add_ps(a.v, b.v)}; }
MC_INLINE V sub(V a, V b) { return {_mm256_sub_ps(a.v, b.v)}; }
MC_INLINE V mul(V a, V b) { return {_mm256_mul_ps(a.v, b.v)}; }
MC_INLINE V div(V a, V b) { return {_mm256_div_ps(a.v, b.v)}; }
MC_INLINE V fma(V a, V b, V c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
MC_INLINE V max(V a, V b) { return {_mm256_max_ps(a.v, b.v)}; }
MC_INLINE V min(V a, V b) { return {_mm256_min_ps(a.v, b.v)}; }
MC_INLINE V nearest(V a) { return {_mm256_round_ps(a.v, 8)}; }

MC_INLINE V power_of_two(__m256i n) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23))};
}
MC_INLINE V times_power(V a, V n) {
    // In two steps, because 2^n alone overflows where a * 2^n does not.
    const __m256i whole = _mm256_cvtps_epi32(n.v);
    const __m256i half = _mm256_srai_epi32(whole, 1);
    return mul(mul(a, power_of_two(half)), power_of_two(_mm256_sub_epi32(whole, half)));
}

MC_INLINE V from_i32(__m256i a) { return {_mm256_cvtepi32_ps(a)}; }
MC_INLINE __m128i bytes8(const void* p) { return _mm_loadl_epi64(static_cast<const __m128i*>(p)); }
MC_INLINE __m128i halves(const u16* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
MC_INLINE __m128i halvesn(const u16* p, int n) {
    u16 full[8] = {};
    for (int i = 0; i < n; ++i) full[i] = p[i];
    return halves(full);
}

MC_INLINE V bf16_bits(__m128i a) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(a), 16))};
}
MC_INLINE V load_bf16(const u16* p) { return bf16_bits(halves(p)); }
MC_INLINE V loadn_bf16(const u16* p, int n) { return bf16_bits(halvesn(p, n)); }
MC_INLINE V load_f16(const u16* p) { return {_mm256_cvtph_ps(halves(p))}; }
MC_INLINE V loadn_f16(const u16* p, int n) { return {_mm256_cvtph_ps(halvesn(p, n))}; }
MC_INLINE V load_i8(const i8* p) { return from_i32(_mm256_cvtepi8_epi32(bytes8(p))); }

template <int SHIFT, int MASK, int BIAS>
MC_INLINE V load_bits(const u8* p) {
    const __m256i wide = _mm256_srli_epi32(_mm256_cvtepu8_epi32(bytes8(p)), SHIFT);
    const __m256i code = _mm256_and_si256(wide, _mm256_set1_epi32(MASK));
    return from_i32(_mm256_sub_epi32(code, _mm256_set1_epi32(BIAS)));
}

MC_INLINE __m128i round_bf16(V a) {
    const __m256i bits = _mm256_castps_si256(a.v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
    const __m256i word = _mm256_srli_epi32(_mm256_blendv_epi8(up, quiet, nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(word), _mm256_extracti128_si256(word, 1));
}
MC_INLINE void store_bf16(u16* p, V a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), round_bf16(a)); }
MC_INLINE void storen_bf16(u16* p, V a, int n) {
    u16 full[8];
    store_bf16(full, a);
    for (int i = 0; i < n; ++i) p[i] = full[i];
}

MC_INLINE float f16_to_f32(u16 h) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(h))); }

#define MC_HAS_HSUM
MC_INLINE float hsum256(__m256 a) {
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}
MC_INLINE float hsum(V a) { return hsum256(a.v); }
#define MC_HAS_HSUM4
// hsum of each.
MC_INLINE void hsum4(V a, V b, V c, V d, float* out) {
    const __m256 ab = _mm256_add_ps(_mm256_permute2f128_ps(a.v, b.v, 0x20), _mm256_permute2f128_ps(a.v, b.v, 0x31));
    const __m256 cd = _mm256_add_ps(_mm256_permute2f128_ps(c.v, d.v, 0x20), _mm256_permute2f128_ps(c.v, d.v, 0x31));
    const __m256d left = _mm256_castps_pd(ab), right = _mm256_castps_pd(cd);
    const __m256 low = _mm256_castpd_ps(_mm256_unpacklo_pd(left, right)), high = _mm256_castpd_ps(_mm256_unpackhi_pd(left, right));
    const __m256 two = _mm256_add_ps(low, high);  // of a, c, b, d
    const __m256 one = _mm256_add_ps(two, _mm256_movehdup_ps(two));
    const __m256 order = _mm256_permutevar8x32_ps(one, _mm256_setr_epi32(0, 4, 2, 6, 0, 4, 2, 6));
    _mm_storeu_ps(out, _mm256_castps256_ps128(order));
}

// Vectors of 16 int16 and of 8 int32, for linear/panels.hpp and linear/pairs.hpp.
#define MC_HAS_INTS
#define MC_HAS_PAIRS
#define MC_HAS_PANELS
struct Words {
    __m256i v;
};
struct Ints {
    __m256i v;
};

MC_INLINE Words load_words(const void* p) { return {_mm256_loadu_si256(static_cast<const __m256i*>(p))}; }
MC_INLINE Words all_words(int x) { return {_mm256_set1_epi16(static_cast<short>(x))}; }
// Of each pair of bytes the lower and the upper one as words, signed or not.
MC_INLINE Words low_bytes(Words a) { return {_mm256_srai_epi16(_mm256_slli_epi16(a.v, 8), 8)}; }
MC_INLINE Words high_bytes(Words a) { return {_mm256_srai_epi16(a.v, 8)}; }
MC_INLINE Words low_unsigned(Words a) { return {_mm256_and_si256(a.v, _mm256_set1_epi16(255))}; }
MC_INLINE Words high_unsigned(Words a) { return {_mm256_srli_epi16(a.v, 8)}; }
MC_INLINE Ints no_ints() { return {_mm256_setzero_si256()}; }
#if defined(MC_ISA_AVXVNNI)
#define MC_HAS_VNNI
#include "simd/vnni.hpp"
// sum + a * b, two neighbours in a lane.
MC_INLINE Ints dot(Ints sum, Words a, Words b) { return {add_word_products(sum.v, a.v, b.v)}; }
MC_INLINE Ints dot_tile(Ints sum, Words a, Words b) { return dot(sum, a, b); }
// The same with one b for all lanes, a pair from memory.
MC_INLINE void dot_pair(Ints& sum, Words a, const u8* b) { sum_word_products(sum.v, a.v, b); }
#else
// sum + a * b, two neighbours in a lane.
MC_INLINE Ints dot(Ints sum, Words a, Words b) {
    __m256i more = _mm256_add_epi32(sum.v, _mm256_madd_epi16(a.v, b.v));
#if defined(__GNUC__)
    // GCC would make trees of the sums, of more registers than there are.
    __asm__("" : "+x"(more));
#endif
    return {more};
}
// The same for a tile of 12 sums, where GCC would copy each sum (measured: 5 to 10%; for few rows dot is faster).
MC_INLINE Ints dot_tile(Ints sum, Words a, Words b) {
#if defined(__GNUC__)
    __asm__("vpaddd %1, %0, %0" : "+x"(sum.v) : "x"(_mm256_madd_epi16(a.v, b.v)));
    return sum;
#else
    return dot(sum, a, b);
#endif
}
MC_INLINE void dot_pair(Ints& sum, Words a, const u8* b) {
    i32 pair;
    memcpy(&pair, b, sizeof pair);
    sum = dot_tile(sum, a, {_mm256_set1_epi32(pair)});
}
#endif
MC_INLINE Ints all_ints(i32 x) { return {_mm256_set1_epi32(x)}; }
// 256 high + low.
MC_INLINE Ints join_halves(Ints high, Ints low) { return {_mm256_add_epi32(_mm256_slli_epi32(high.v, 8), low.v)}; }
MC_INLINE V to_floats(Ints a) { return from_i32(a.v); }
MC_INLINE Ints round_to_ints(V a) { return {_mm256_cvtps_epi32(a.v)}; }
// 16 integers q of at most 32512 as signed bytes: q = 256 high + low.
MC_INLINE void store_halves(void* high, void* low, const Ints* q) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(q[0].v, q[1].v), 0xd8);
    const __m256i upper = _mm256_srai_epi16(_mm256_add_epi16(words, _mm256_set1_epi16(128)), 8);
    const __m256i lower = _mm256_and_si256(words, _mm256_set1_epi16(255));
    const __m256i high_bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(upper, upper), 0xd8);
    const __m256i low_bytes = _mm256_permute4x64_epi64(_mm256_packus_epi16(lower, lower), 0xd8);
    _mm_storeu_si128(static_cast<__m128i*>(high), _mm256_castsi256_si128(high_bytes));
    _mm_storeu_si128(static_cast<__m128i*>(low), _mm256_castsi256_si128(low_bytes));
}
// 16 integers of at most 127 as signed bytes.
MC_INLINE void store_bytes(void* p, const Ints* q) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(q[0].v, q[1].v), 0xd8);
    const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(words, words), 0xd8);
    _mm_storeu_si128(static_cast<__m128i*>(p), _mm256_castsi256_si128(bytes));
}
MC_INLINE void prefetch_far(const void* p) { _mm_prefetch(static_cast<const char*>(p) + 16384, _MM_HINT_T1); }

MC_INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
MC_INLINE void store_words(void* p, Words a) { _mm256_storeu_si256(static_cast<__m256i*>(p), a.v); }
MC_INLINE Words all_pairs(u32 pair) { return {_mm256_set1_epi32(static_cast<i32>(pair))}; }
// 16 integers as int16, in order.
MC_INLINE void store_int16(void* p, const Ints* q) {
    store_words(p, {_mm256_permute4x64_epi64(_mm256_packs_epi32(q[0].v, q[1].v), 0xd8)});
}
// The same: of each four the first and third, then the second and fourth.
MC_INLINE void store_crossed(void* p, const Ints* q) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(q[0].v, q[1].v), 0xd8);
    const __m256i order = _mm256_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15, 0, 1, 4, 5, 2, 3, 6, 7, 8, 9,
                                           12, 13, 10, 11, 14, 15);
    store_words(p, {_mm256_shuffle_epi8(words, order)});
}
// Of four bytes in each dword, codes of BITS bits in their field `part` (8 bits: signed): bytes 2 i and 2 i + 1 as a pair
// of int16, less bias.
template <int BITS>
MC_INLINE Words byte_pairs(Words raw, int part, int i, Words bias) {
    // Byte 4 d + b of a lane to half b of dword d, its other byte zero; 8 bits to the upper byte, where their sign is.
    const __m256i low = _mm256_setr_epi32(
        static_cast<i32>(0x80018000U), static_cast<i32>(0x80058004U), static_cast<i32>(0x80098008U),
        static_cast<i32>(0x800d800cU), static_cast<i32>(0x80018000U), static_cast<i32>(0x80058004U),
        static_cast<i32>(0x80098008U), static_cast<i32>(0x800d800cU));
    const __m256i bytes = _mm256_srli_epi32(raw.v, 16 * i);
    if (BITS == 8) {
        const __m256i high = _mm256_or_si256(_mm256_slli_epi32(low, 8), _mm256_set1_epi32(0x80));
        return {_mm256_srai_epi16(_mm256_shuffle_epi8(bytes, high), 8)};
    }
    const __m256i words = _mm256_srli_epi16(_mm256_shuffle_epi8(bytes, low), part * BITS);
    return {_mm256_sub_epi16(_mm256_and_si256(words, _mm256_set1_epi16((1 << BITS) - 1)), bias.v)};
}
// Transposes 8 x 8 words of 32 bits.
MC_INLINE void transpose_pairs(Words* v) {
    __m256i two[8], four[8];
    MC_UNROLL
    for (int i = 0; i < 8; i += 2) {
        two[i] = _mm256_unpacklo_epi32(v[i].v, v[i + 1].v);
        two[i + 1] = _mm256_unpackhi_epi32(v[i].v, v[i + 1].v);
    }
    MC_UNROLL
    for (int i = 0; i < 8; i += 4) {
        MC_UNROLL
        for (int j = 0; j < 2; ++j) {
            four[i + 2 * j] = _mm256_unpacklo_epi64(two[i + j], two[i + j + 2]);
            four[i + 2 * j + 1] = _mm256_unpackhi_epi64(two[i + j], two[i + j + 2]);
        }
    }
    MC_UNROLL
    for (int i = 0; i < 4; ++i) {
        v[i].v = _mm256_permute2x128_si256(four[i], four[i + 4], 0x20);
        v[i + 4].v = _mm256_permute2x128_si256(four[i], four[i + 4], 0x31);
    }
}
