// Activations as 16-bit integers with a scale: what every method of small integers makes of x.
//
// One order of additions for all of them, so that a product has the same bits by every method, whatever rows stand beside
// it. Columns are cut in blocks of kBlockDepth, which share a scale of x, and these at the ends of groups into pieces.
// The sum of a piece is a whole number, exact in any order. Then, in float32 with one rounding an operation, by columns:
//   part = 0 for each block; for each of its pieces part = fma(sum, scale of the group, part), and with offsets
//   part = fma(sum of x's integers in the piece, offset of the group, part); then total = fma(part, scale of x, total)
// Included inside the namespace of the instruction set, where simd files have Ints.

constexpr i64 kBlockDepth = 128;

// Of lanes: a sum that is exact in any order, the largest where none is NaN, and whether one is.
#if defined(MC_HAS_AVX512)
MC_INLINE float sum_lanes(V a) { return _mm512_reduce_add_ps(a.v); }
MC_INLINE float most_lane(V a) { return _mm512_reduce_max_ps(a.v); }
MC_INLINE bool some_nan(V a) { return _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q) != 0; }
#else
MC_INLINE float sum_lanes(V a) { return hsum(a); }
MC_INLINE float most_lane(V a) { return hmax(a); }
MC_INLINE bool some_nan(V zeros) { return !(hsum(zeros) == 0.0F); }  // of lanes that are 0 otherwise
#endif

// The scale of `count` values of x as integers of at most 32512, whose upper byte, rounded, is a signed one; NaN where
// one is not finite.
MC_INLINE float int16_scale(const float* x, i64 count) {
    V most = zero(), bad = zero();
    for (i64 k = 0; k < count; k += W) {
        const V a = load(x + k);
        bad = fma(a, zero(), bad);
        most = max(max(a, sub(zero(), a)), most);
    }
    return some_nan(bad) ? NAN : most_lane(most) / 32512.0F;
}

// What to multiply x by to get its integers; 0 where x is not finite, or too small for its quotients to be.
MC_INLINE float inverse_scale(float scale) { return scale > 1e-36F ? 1.0F / scale : 0.0F; }

// `count` values of x, a multiple of 16, as integers nearest to x * inverse, 16 at a time to place(column, q), Ints
// q[16 / W]; zeros where inverse is 0, for what is not finite has no integer to sum up. Returns their sum, which is
// exact.
template <class Place>
MC_INLINE float quantise_x(const float* x, i64 count, float inverse, const Place& place) {
    const V factor = set1(inverse);
    const bool finite = inverse != 0.0F;
    V sum = zero();
    for (i64 k = 0; k < count; k += 16) {
        Ints q[16 / W];
        for (int i = 0; i < 16 / W; ++i) {
            q[i] = round_to_ints(finite ? mul(load(x + k + i * W), factor) : zero());
            sum = add(sum, to_floats(q[i]));
        }
        place(k, q);
    }
    return sum_lanes(sum);
}
