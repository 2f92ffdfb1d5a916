// No instruction set in particular: 4 floats in plain C++, for the compiler to make what it can of.
constexpr int W = 4;
constexpr int kTileRows = 4;

#if defined(__GNUC__)
using Four = float __attribute__((vector_size(16)));
#else
struct Four {
    float lane[4];
    float& operator[](int i) { return lane[i]; }
    float operator[](int i) const { return lane[i]; }
};
MC_INLINE Four operator+(Four a, Four b) { return {{a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]}}; }
MC_INLINE Four operator-(Four a, Four b) { return {{a[0] - b[0], a[1] - b[1], a[2] - b[2], a[3] - b[3]}}; }
MC_INLINE Four operator*(Four a, Four b) { return {{a[0] * b[0], a[1] * b[1], a[2] * b[2], a[3] * b[3]}}; }
MC_INLINE Four operator/(Four a, Four b) { return {{a[0] / b[0], a[1] / b[1], a[2] / b[2], a[3] / b[3]}}; }
#endif

struct V {
    Four v;
};

template <class Make>
MC_INLINE V each(Make make) {
    V r;
    for (int i = 0; i < W; ++i) r.v[i] = make(i);
    return r;
}

MC_INLINE u32 bits_of(float x) {
    u32 bits = 0;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
MC_INLINE float float_of(u32 bits) {
    float x = 0;
    memcpy(&x, &bits, sizeof x);
    return x;
}

MC_INLINE V set1(float x) {
    return each([=](int) { return x; });
}
MC_INLINE V zero() { return set1(0.0F); }
MC_INLINE V load(const float* p) {
    V r;
    memcpy(&r, p, sizeof r);
    return r;
}
MC_INLINE V loadn(const float* p, int n) {
    return each([=](int i) { return i < n ? p[i] : 0.0F; });
}
MC_INLINE void store(float* p, V a) { memcpy(p, &a, sizeof a); }
MC_INLINE void storen(float* p, V a, int n) {
    for (int i = 0; i < n; ++i) p[i] = a.v[i];
}
MC_INLINE V add(V a, V b) { return {a.v + b.v}; }
MC_INLINE V sub(V a, V b) { return {a.v - b.v}; }
MC_INLINE V mul(V a, V b) { return {a.v * b.v}; }
MC_INLINE V div(V a, V b) { return {a.v / b.v}; }
MC_INLINE V fma(V a, V b, V c) { return {a.v * b.v + c.v}; }
MC_INLINE V max(V a, V b) {
    return each([=](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
MC_INLINE V min(V a, V b) {
    return each([=](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
MC_INLINE V nearest(V a) {
    // Adding 1.5 * 2^23 drops the fraction; good for |a| < 2^22, which is all that exp asks for.
    const V magic = set1(12582912.0F);
    return sub(add(a, magic), magic);
}
MC_INLINE V times_power(V a, V n) {
    // In two steps, because 2^n alone overflows where a * 2^n does not. NaN: any power will do.
    return each([=](int i) {
        const float safe = n.v[i] > -300.0F && n.v[i] < 300.0F ? n.v[i] : 0.0F;
        const i32 whole = static_cast<i32>(safe);
        const i32 half = whole / 2;
        const float first = float_of(static_cast<u32>(half + 127) << 23);
        return a.v[i] * first * float_of(static_cast<u32>(whole - half + 127) << 23);
    });
}

MC_INLINE float f16_to_f32(u16 h) {
    // Exponent and fraction move up 13 bits; multiplying by 2^112 corrects the bias, denormals too.
    const u32 body = static_cast<u32>(h & 0x7fff) << 13;
    u32 bits = bits_of(float_of(body) * float_of(0x77800000U));
    if (body >= 0x0f800000U) bits |= 0x7f800000U;
    return float_of(bits | (static_cast<u32>(h & 0x8000) << 16));
}
MC_INLINE float bf16_to_f32(u16 h) { return float_of(static_cast<u32>(h) << 16); }

MC_INLINE V load_bf16(const u16* p) {
    return each([=](int i) { return bf16_to_f32(p[i]); });
}
MC_INLINE V loadn_bf16(const u16* p, int n) {
    return each([=](int i) { return i < n ? bf16_to_f32(p[i]) : 0.0F; });
}
MC_INLINE V load_f16(const u16* p) {
    return each([=](int i) { return f16_to_f32(p[i]); });
}
MC_INLINE V loadn_f16(const u16* p, int n) {
    return each([=](int i) { return i < n ? f16_to_f32(p[i]) : 0.0F; });
}
MC_INLINE V load_i8(const i8* p) {
    return each([=](int i) { return static_cast<float>(p[i]); });
}

template <int SHIFT, int MASK, int BIAS>
MC_INLINE V load_bits(const u8* p) {
    return each([=](int i) { return static_cast<float>(((p[i] >> SHIFT) & MASK) - BIAS); });
}

MC_INLINE void storen_bf16(u16* p, V a, int n) {
    for (int i = 0; i < n; ++i) {
        const u32 bits = bits_of(a.v[i]);
        const u32 up = bits + 0x7fffU + ((bits >> 16) & 1U);
        p[i] = static_cast<u16>((a.v[i] != a.v[i] ? bits | 0x400000U : up) >> 16);
    }
}
MC_INLINE void store_bf16(u16* p, V a) { storen_bf16(p, a, W); }
