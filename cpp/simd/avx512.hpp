// AVX-512: 16 floats. See simd/simd.hpp for what each function does.

#define MC_HAS_AVX512
constexpr int W = 16;
constexpr int kTileRows = 12;

struct V {
    __m512 v;
};

MC_INLINE __mmask16 lanes(int n) { return static_cast<__mmask16>((1U << n) - 1U); }
MC_INLINE V zero() { return {_mm512_setzero_ps()}; }
MC_INLINE V set1(float x) { return {_mm512_set1_ps(x)}; }
MC_INLINE V load(const float* p) { return {_mm512_loadu_ps(p)}; }
MC_INLINE V loadn(const float* p, int n) { return {_mm512_maskz_loadu_ps(lanes(n), p)}; }
MC_INLINE void store(float* p, V a) { _mm512_storeu_ps(p, a.v); }
MC_INLINE void storen(float* p, V a, int n) { _mm512_mask_storeu_ps(p, lanes(n), a.v); }
MC_INLINE V add(V a, V b) { return {_mm512_add_ps(a.v, b.v)}; }
MC_INLINE V sub(V a, V b) { return {_mm512_sub_ps(a.v, b.v)}; }
MC_INLINE V mul(V a, V b) { return {_mm512_mul_ps(a.v, b.v)}; }
MC_INLINE V div(V a, V b) { return {_mm512_div_ps(a.v, b.v)}; }
MC_INLINE V fma(V a, V b, V c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
MC_INLINE V max(V a, V b) { return {_mm512_max_ps(a.v, b.v)}; }
MC_INLINE V min(V a, V b) { return {_mm512_min_ps(a.v, b.v)}; }
MC_INLINE V nearest(V a) { return {_mm512_roundscale_ps(a.v, 8)}; }

// a * 2^n for whole n.
MC_INLINE V times_power(V a, V n) { return {_mm512_scalef_ps(a.v, n.v)}; }

MC_INLINE V from_i32(__m512i a) { return {_mm512_cvtepi32_ps(a)}; }
MC_INLINE __m128i bytes16(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }

MC_INLINE V bf16_bits(__m256i a) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(a), 16))};
}
MC_INLINE V load_bf16(const u16* p) {
    return bf16_bits(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
MC_INLINE V loadn_bf16(const u16* p, int n) { return bf16_bits(_mm256_maskz_loadu_epi16(lanes(n), p)); }
MC_INLINE V load_f16(const u16* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
MC_INLINE V loadn_f16(const u16* p, int n) {
    return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes(n), p))};
}
MC_INLINE V load_i8(const i8* p) { return from_i32(_mm512_cvtepi8_epi32(bytes16(p))); }

// ((byte >> shift) & mask) - bias of the next W bytes.
template <int SHIFT, int MASK, int BIAS>
MC_INLINE V load_bits(const u8* p) {
    const __m512i wide = _mm512_srli_epi32(_mm512_cvtepu8_epi32(bytes16(p)), SHIFT);
    const __m512i code = _mm512_and_si512(wide, _mm512_set1_epi32(MASK));
    return from_i32(_mm512_sub_epi32(code, _mm512_set1_epi32(BIAS)));
}

// Sixteen codes of 4 bits by table: the permutation looks at the low 4 bits of each index only.
template <int SHIFT, int BIAS>
MC_INLINE V load_nibbles(const u8* p) {
    const __m512 table = _mm512_setr_ps(0 - BIAS, 1 - BIAS, 2 - BIAS, 3 - BIAS, 4 - BIAS, 5 - BIAS, 6 - BIAS,
                                        7 - BIAS, 8 - BIAS, 9 - BIAS, 10 - BIAS, 11 - BIAS, 12 - BIAS,
                                        13 - BIAS, 14 - BIAS, 15 - BIAS);
    const __m512i wide = _mm512_cvtepu8_epi32(bytes16(p));
    return {_mm512_permutexvar_ps(SHIFT == 0 ? wide : _mm512_srli_epi32(wide, SHIFT), table)};
}
#define MC_HAS_NIBBLES

MC_INLINE __m256i round_bf16(V a) {
    const __m512i bits = _mm512_castps_si512(a.v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(up, nan, quiet), 16));
}
MC_INLINE void store_bf16(u16* p, V a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), round_bf16(a));
}
MC_INLINE void storen_bf16(u16* p, V a, int n) { _mm256_mask_storeu_epi16(p, lanes(n), round_bf16(a)); }

MC_INLINE float f16_to_f32(u16 h) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(h))); }

#define MC_HAS_HSUM
MC_INLINE float hsum256(__m256 a) {
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}
MC_INLINE float hsum(V a) {
    return hsum256(_mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1)));
}
#define MC_HAS_HSUM4
// hsum of each.
MC_INLINE void hsum4(V a, V b, V c, V d, float* out) {
    const auto halves = [](__m512 left, __m512 right) {
        return _mm512_add_ps(_mm512_shuffle_f32x4(left, right, 0x44), _mm512_shuffle_f32x4(left, right, 0xee));
    };
    const __m512 ab = halves(a.v, b.v), cd = halves(c.v, d.v);
    const __m512 four = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
    const __m512 two = _mm512_add_ps(four, _mm512_permute_ps(four, 0xee));
    const __m512 one = _mm512_add_ps(two, _mm512_movehdup_ps(two));
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12);
    _mm_storeu_ps(out, _mm512_castps512_ps128(_mm512_permutexvar_ps(order, one)));
}
