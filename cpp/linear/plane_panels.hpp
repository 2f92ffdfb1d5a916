// Codes of 2, 3, 5 and 6 bits out of panels (formats/quant.py), as bytes: for linear/panels.hpp and what reads panels beside
// it. A panel's planes lie side by side in units of 16 or 32 columns; one AND, shift and OR a vector put them together.
// Included inside the namespace of the instruction set, with MC_HAS_PANELS only.

#if defined(MC_HAS_AVX512)
using PanelBytes = __m512i;  // of 16 rows
MC_INLINE PanelBytes load_panel(const u8* p) {
    PanelBytes a = _mm512_loadu_si512(p);
    MC_KEEP(a);
    return a;
}
MC_INLINE void store_panel(u8* p, PanelBytes a) { _mm512_storeu_si512(p, a); }
MC_INLINE PanelBytes either_bits(PanelBytes a, PanelBytes b) { return _mm512_or_si512(a, b); }
MC_INLINE PanelBytes flip_signs(PanelBytes a) { return _mm512_xor_si512(a, _mm512_set1_epi8(-128)); }
// Of each byte the bits `mask`, shifted right (left where negative) before.
MC_INLINE PanelBytes bits_from(PanelBytes a, int shift, int mask) {
    if (shift > 0) a = _mm512_srli_epi16(a, static_cast<unsigned>(shift));
    if (shift < 0) a = _mm512_slli_epi16(a, static_cast<unsigned>(-shift));
    return _mm512_and_si512(a, _mm512_set1_epi8(static_cast<char>(mask)));
}
#else
using PanelBytes = __m256i;  // of 8 rows
MC_INLINE PanelBytes load_panel(const u8* p) {
    PanelBytes a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    MC_KEEP(a);
    return a;
}
MC_INLINE void store_panel(u8* p, PanelBytes a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a); }
MC_INLINE PanelBytes either_bits(PanelBytes a, PanelBytes b) { return _mm256_or_si256(a, b); }
MC_INLINE PanelBytes flip_signs(PanelBytes a) { return _mm256_xor_si256(a, _mm256_set1_epi8(-128)); }
MC_INLINE PanelBytes bits_from(PanelBytes a, int shift, int mask) {
    if (shift > 0) a = _mm256_srli_epi16(a, shift);
    if (shift < 0) a = _mm256_slli_epi16(a, -shift);
    return _mm256_and_si256(a, _mm256_set1_epi8(static_cast<char>(mask)));
}
#endif
template <int SHIFT>
MC_INLINE PanelBytes some_bits(PanelBytes a, int mask) {
    return bits_from(a, SHIFT, mask);
}

// How 16 columns come out of a unit: kColumns of it, kBytes; get<H>: those from column 16 H on, of four neighbours a vector.
template <class F>
struct PanelPlanes;

template <>
struct PanelPlanes<FormatInt6> {
    static constexpr i64 kColumns = 16, kBytes = 192;
    template <int>
    MC_INLINE void get(PanelBytes* w, const u8* unit) {
        const PanelBytes a = load_panel(unit), b = load_panel(unit + 64), top = load_panel(unit + 128);
        w[0] = either_bits(some_bits<0>(a, 15), some_bits<-4>(top, 48));
        w[1] = either_bits(some_bits<4>(a, 15), some_bits<-2>(top, 48));
        w[2] = either_bits(some_bits<0>(b, 15), some_bits<0>(top, 48));
        w[3] = either_bits(some_bits<4>(b, 15), some_bits<2>(top, 48));
    }
};

template <>
struct PanelPlanes<FormatInt5> {
    static constexpr i64 kColumns = 32, kBytes = 320;
    template <int H>
    MC_INLINE void get(PanelBytes* w, const u8* unit) {
        const PanelBytes a = load_panel(unit + 128 * H), b = load_panel(unit + 128 * H + 64), top = load_panel(unit + 256);
        w[0] = either_bits(some_bits<0>(a, 15), some_bits<4 * H - 4>(top, 16));
        w[1] = either_bits(some_bits<4>(a, 15), some_bits<4 * H - 3>(top, 16));
        w[2] = either_bits(some_bits<0>(b, 15), some_bits<4 * H - 2>(top, 16));
        w[3] = either_bits(some_bits<4>(b, 15), some_bits<4 * H - 1>(top, 16));
    }
};

template <>
struct PanelPlanes<FormatInt3> {
    static constexpr i64 kColumns = 32, kBytes = 192;
    template <int H>
    MC_INLINE void get(PanelBytes* w, const u8* unit) {
        const PanelBytes a = load_panel(unit + 64 * H), top = load_panel(unit + 128);
        w[0] = either_bits(some_bits<0>(a, 3), some_bits<4 * H - 2>(top, 4));
        w[1] = either_bits(some_bits<2>(a, 3), some_bits<4 * H - 1>(top, 4));
        w[2] = either_bits(some_bits<4>(a, 3), some_bits<4 * H>(top, 4));
        w[3] = either_bits(some_bits<6>(a, 3), some_bits<4 * H + 1>(top, 4));
    }
};

template <>
struct PanelPlanes<FormatInt2> {
    static constexpr i64 kColumns = 16, kBytes = 64;
    template <int>
    MC_INLINE void get(PanelBytes* w, const u8* unit) {
        const PanelBytes a = load_panel(unit);
        w[0] = some_bits<0>(a, 3);
        w[1] = some_bits<2>(a, 3);
        w[2] = some_bits<4>(a, 3);
        w[3] = some_bits<6>(a, 3);
    }
};

// Step::run<H>(step, unit, row) for each of `sixteens` times 16 columns from `unit` on, with `odd` from the middle of one of 32; both
// go on, a row of x by the Step::kSixteen bytes that 16 columns of it take.
template <class F, bool HALVES, class Step>
MC_INLINE void each_sixteen(i64 sixteens, bool odd, const u8*& unit, const u8*& row, Step step) {
    using P = PanelPlanes<F>;
    constexpr i64 kRow = Step::kSixteen;
    if constexpr (P::kColumns == 16) {
        for (; sixteens > 0; --sixteens, unit += P::kBytes, row += kRow) Step::template run<0>(step, unit, row);
    } else if constexpr (HALVES) {
        for (; sixteens > 0; --sixteens, row += kRow, odd = !odd) {
            if (odd) {
                Step::template run<1>(step, unit, row);
                unit += P::kBytes;
            } else {
                Step::template run<0>(step, unit, row);
            }
        }
    } else {
        for (; sixteens > 0; sixteens -= 2, unit += P::kBytes, row += 2 * kRow) {
            Step::template run<0>(step, unit, row);
            Step::template run<1>(step, unit, row + kRow);
        }
    }
}

// The code of a panel's row `lane` in column k.
template <class F>
MC_INLINE int panel_code(const u8* panel, i64 lane, i64 k) {
    constexpr i64 kColumns = PanelPlanes<F>::kColumns, kInChunk = 32 / F::kLow;
    const i64 c = k % kColumns;
    const u8* unit = panel + k / kColumns * PanelPlanes<F>::kBytes + 4 * lane + c % 4;
    const int low = unit[c / kInChunk * 64] >> c % kInChunk / 4 * F::kLow & ((1 << F::kLow) - 1);
    if (F::kHigh == 0) return low;
    return low | (unit[2 * kColumns * F::kLow] >> c / 4 * F::kHigh & ((1 << F::kHigh) - 1)) << F::kLow;
}

// What steps of W of a panel's rows are multiples of, from row `row` on: of vector number i of kPanelRows scales or offsets.
MC_INLINE V panel_super(const GroupFloats& g, i64 i, i64 row) {
    return g.supers == nullptr ? zero() : load_f16(g.supers + (i >> g.shift) * kPanelRows + row);
}

// The scales or offsets of these rows.
MC_INLINE V panel_lanes(const GroupFloats& g, i64 i, i64 row, V super) {
    const i64 at = i * kPanelRows + row;
    if (g.type == ScaleType::f16) return load_f16(static_cast<const u16*>(g.data) + at);
    if (g.type == ScaleType::f32) return load(static_cast<const float*>(g.data) + at);
    const u8* steps = static_cast<const u8*>(g.data) + at;
    if (g.type == ScaleType::steps) return mul(load_i8(reinterpret_cast<const i8*>(steps)), super);
    return mul(g.type == ScaleType::low_steps ? load_bits<0, 15, 0>(steps) : load_bits<4, 15, 0>(steps), super);
}

MC_INLINE V panel_lanes(const GroupFloats& g, i64 i, i64 row) { return panel_lanes(g, i, row, panel_super(g, i, row)); }
