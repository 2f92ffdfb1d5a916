// From weights in panels to the pairs of 16-bit integers of linear_pairs.hpp: no transposition is needed. Included inside
// the namespace of the instruction set, with MC_HAS_VNNI only.

// Four bytes in each dword as two pairs of int16, (0, 1) and (2, 3): unsigned less `bias`, or signed.
template <bool kSigned>
MC_INLINE void bytes_to_pairs(__m512i bytes, __m512i bias, __m512i* pairs) {
    // A lane of 128 bits: byte 4 d + 2 i + b of it to half b of dword d; 0x80 makes a zero byte.
    const __m512i unsigned_order = _mm512_broadcast_i32x4(_mm_setr_epi32(
        static_cast<i32>(0x80018000U), static_cast<i32>(0x80058004U), static_cast<i32>(0x80098008U),
        static_cast<i32>(0x800d800cU)));
    const __m512i order = kSigned ? _mm512_rol_epi32(unsigned_order, 8) : unsigned_order;
    MC_UNROLL
    for (int i = 0; i < 2; ++i) {
        const __m512i words = _mm512_shuffle_epi8(i == 0 ? bytes : _mm512_srli_epi32(bytes, 16), order);
        pairs[i] = kSigned ? _mm512_srai_epi16(words, 8) : _mm512_sub_epi16(words, bias);
    }
}

// Panel `p` of weights at depth k to lanes [half, half + 16).
template <class F>
static void unpack_panel(const Matrix& m, i64 p, i64 half, i64 k, const Segments& s, PairPanel* panel) {
    constexpr i64 kStep = PanelStep<F>::value, kParts = Bytes<F>::kParts;
    const i64 groups = m.cols / m.group, chunks = (depth_end(m, k) - k) / kStep;
    const u8* codes = static_cast<const u8*>(m.codes) + (p * (m.cols / kStep) + k / kStep) * 64;
    const __m512i bias = _mm512_set1_epi16(static_cast<short>(panel_bias<F>(m)));
    for (i64 c = 0; c < chunks; ++c) {
        const __m512i raw = _mm512_loadu_si512(codes + c * 64);
        __m512i w[kParts], pairs[2];
        if constexpr (kParts == 1) {
            w[0] = raw;
        } else {
            Bytes<F>::split(w, raw);
        }
        for (i64 part = 0; part < kParts; ++part) {
            bytes_to_pairs<kParts == 1>(w[part], bias, pairs);
            const i64 t = (c * kStep + 4 * part) / 2;
            for (i64 i = 0; i < 2; ++i) _mm512_store_si512(panel->pairs[t + i] + half, pairs[i]);
        }
    }
    for (int g = 0; g < s.count; ++g) {
        const i64 at = p * groups + s.group[g];
        _mm512_store_ps(panel->scales[g] + half, panel_floats(m.scales, m.half_scales, at));
        if (m.offsets != nullptr) {
            _mm512_store_ps(panel->offsets[g] + half, panel_floats(m.offsets, m.half_offsets, at));
        }
    }
}

// Weight rows [r, r + rows), r a multiple of 16, at depth k.
template <class F>
static void unpack_panels(const Matrix& m, i64 r, i64 rows, i64 k, const Segments& s, PairPanel* panel) {
    for (i64 half = 0; half < rows; half += kPanelRows) {
        unpack_panel<F>(m, (r + half) / kPanelRows, half, k, s, panel);
    }
}
