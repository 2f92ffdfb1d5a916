// NEON: 4 floats. See simd/simd.hpp for what each function does. The aarch64 baseline, with dot products of bytes (dotprod)
// where MC_ISA_NEON_DOTPROD or MC_ISA_NEON_I8MM is defined, and matrix products (i8mm, bf16) with the latter.

constexpr int W = 4;
constexpr int kTileRows = 8;

struct V {
    float32x4_t v;
};

MC_INLINE V zero() { return {vdupq_n_f32(0.0F)}; }
MC_INLINE V set1(float x) { return {vdupq_n_f32(x)}; }
MC_INLINE V load(const float* p) { return {vld1q_f32(p)}; }
MC_INLINE V loadn(const float* p, int n) {
    float full[4] = {};
    for (int i = 0; i < n; ++i) full[i] = p[i];
    return load(full);
}
MC_INLINE void store(float* p, V a) { vst1q_f32(p, a.v); }
MC_INLINE void storen(float* p, V a, int n) {
    float full[4];
    store(full, a);
    for (int i = 0; i < n; ++i) p[i] = full[i];
}
MC_INLINE V add(V a, V b) { return {vaddq_f32(a.v, b.v)}; }
MC_INLINE V sub(V a, V b) { return {vsubq_f32(a.v, b.v)}; }
MC_INLINE V mul(V a, V b) { return {vmulq_f32(a.v, b.v)}; }
MC_INLINE V div(V a, V b) { return {vdivq_f32(a.v, b.v)}; }
MC_INLINE V fma(V a, V b, V c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
MC_INLINE V max(V a, V b) { return {vbslq_f32(vcgtq_f32(a.v, b.v), a.v, b.v)}; }
MC_INLINE V min(V a, V b) { return {vbslq_f32(vcltq_f32(a.v, b.v), a.v, b.v)}; }
MC_INLINE V nearest(V a) { return {vrndnq_f32(a.v)}; }

MC_INLINE V power_of_two(int32x4_t n) {
    return {vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23))};
}
MC_INLINE V times_power(V a, V n) {
    // In two steps, because 2^n alone overflows where a * 2^n does not.
    const int32x4_t whole = vcvtq_s32_f32(n.v);
    const int32x4_t half = vshrq_n_s32(whole, 1);
    return mul(mul(a, power_of_two(half)), power_of_two(vsubq_s32(whole, half)));
}

MC_INLINE uint16x4_t halvesn(const u16* p, int n) {
    u16 full[4] = {};
    for (int i = 0; i < n; ++i) full[i] = p[i];
    return vld1_u16(full);
}
MC_INLINE V bf16_bits(uint16x4_t a) { return {vreinterpretq_f32_u32(vshll_n_u16(a, 16))}; }
MC_INLINE V f16_bits(uint16x4_t a) { return {vcvt_f32_f16(vreinterpret_f16_u16(a))}; }
MC_INLINE V load_bf16(const u16* p) { return bf16_bits(vld1_u16(p)); }
MC_INLINE V loadn_bf16(const u16* p, int n) { return bf16_bits(halvesn(p, n)); }
MC_INLINE V load_f16(const u16* p) { return f16_bits(vld1_u16(p)); }
MC_INLINE V loadn_f16(const u16* p, int n) { return f16_bits(halvesn(p, n)); }

MC_INLINE uint32x4_t bytes4(const void* p) {
    u32 word = 0;
    memcpy(&word, p, sizeof word);
    const uint8x8_t bytes = vreinterpret_u8_u32(vdup_n_u32(word));
    return vmovl_u16(vget_low_u16(vmovl_u8(bytes)));
}
MC_INLINE V load_i8(const i8* p) {
    const int32x4_t wide = vreinterpretq_s32_u32(bytes4(p));
    return {vcvtq_f32_s32(vshrq_n_s32(vshlq_n_s32(wide, 24), 24))};
}

template <int SHIFT, int MASK, int BIAS>
MC_INLINE V load_bits(const u8* p) {
    const uint32x4_t wide = vshlq_u32(bytes4(p), vdupq_n_s32(-SHIFT));
    const int32x4_t code = vreinterpretq_s32_u32(vandq_u32(wide, vdupq_n_u32(MASK)));
    return {vcvtq_f32_s32(vsubq_s32(code, vdupq_n_s32(BIAS)))};
}

MC_INLINE void store_bf16(u16* p, V a) {
    const uint32x4_t bits = vreinterpretq_u32_f32(a.v);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t up = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
    const uint32x4_t word = vbslq_u32(vceqq_f32(a.v, a.v), up, quiet);
    vst1_u16(p, vshrn_n_u32(word, 16));
}
MC_INLINE void storen_bf16(u16* p, V a, int n) {
    u16 full[4];
    store_bf16(full, a);
    for (int i = 0; i < n; ++i) p[i] = full[i];
}

MC_INLINE float f16_to_f32(u16 h) { return vgetq_lane_f32(f16_bits(vdup_n_u16(h)).v, 0); }

#define MC_HAS_HSUM
MC_INLINE float hsum(V a) { return vaddvq_f32(a.v); }

// Vectors of 8 int16 and of 4 int32, for linear/words.hpp.
#define MC_HAS_INTS
#define MC_HAS_WORDS
struct Words {
    int16x8_t v;
};
struct Ints {
    int32x4_t v;
};

MC_INLINE Words load_words(const void* p) { return {vld1q_s16(static_cast<const int16_t*>(p))}; }
MC_INLINE Ints no_ints() { return {vdupq_n_s32(0)}; }
// sum + a * b, two in a lane.
MC_INLINE Ints dot(Ints sum, Words a, Words b) {
    return {vmlal_high_s16(vmlal_s16(sum.v, vget_low_s16(a.v), vget_low_s16(b.v)), a.v, b.v)};
}
MC_INLINE V to_floats(Ints a) { return {vcvtq_f32_s32(a.v)}; }
MC_INLINE Ints round_to_ints(V a) { return {vcvtnq_s32_f32(a.v)}; }
// 16 integers as int16 in order.
MC_INLINE int16x8x2_t narrow(const Ints* q) {
    return {{vcombine_s16(vmovn_s32(q[0].v), vmovn_s32(q[1].v)), vcombine_s16(vmovn_s32(q[2].v), vmovn_s32(q[3].v))}};
}
#if defined(MC_ISA_NEON_DOTPROD) || defined(MC_ISA_NEON_I8MM)
#define MC_HAS_BYTE_DOT
// sum + a * b, four signed bytes in a lane.
MC_INLINE Ints dot_bytes(Ints sum, Words a, Words b) {
    return {vdotq_s32(sum.v, vreinterpretq_s8_s16(a.v), vreinterpretq_s8_s16(b.v))};
}
// 256 high + low.
MC_INLINE Ints join_halves(Ints high, Ints low) { return {vaddq_s32(vshlq_n_s32(high.v, 8), low.v)}; }
// 16 integers q of at most 32512 as signed bytes: q = 256 high + low.
MC_INLINE void store_halves(void* high, void* low, const Ints* q) {
    const int16x8x2_t words = narrow(q);
    vst1q_s8(static_cast<i8*>(high), vcombine_s8(vrshrn_n_s16(words.val[0], 8), vrshrn_n_s16(words.val[1], 8)));
    vst1q_s8(static_cast<i8*>(low), vcombine_s8(vmovn_s16(words.val[0]), vmovn_s16(words.val[1])));
}
#endif
MC_INLINE void prefetch(const void* p) { __builtin_prefetch(p); }
#if defined(MC_ISA_NEON_I8MM)
#define MC_HAS_BYTE_MATRICES
#define MC_HAS_BF16_DOT
// 8 bf16 values, for linear/floats.hpp.
struct BF16s {
    bfloat16x8_t v;
};
MC_INLINE BF16s load_bf16s(const u16* p) { return {vreinterpretq_bf16_u16(vld1q_u16(p))}; }
MC_INLINE void store_bf16s(u16* p, V a) { vst1_u16(p, vreinterpret_u16_bf16(vcvt_bf16_f32(a.v))); }
MC_INLINE BF16s join_bf16(V low, V high) { return {vcombine_bf16(vcvt_bf16_f32(low.v), vcvt_bf16_f32(high.v))}; }
// sum + a * b, two neighbours in a lane.
MC_INLINE V dot_bf16(V sum, BF16s a, BF16s b) { return {vbfdotq_f32(sum.v, a.v, b.v)}; }
#endif
