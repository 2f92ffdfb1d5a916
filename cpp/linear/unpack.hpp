// Weights out of their packed forms, as vectors of floats in registers.
//
// A format F has KIND, STEP (weights unpacked at once), GROUPED (whether groups have scales), and
// load<RAW>(v, row, k): codes k to k + STEP - 1 of a row into STEP / W vectors. RAW codes are as
// stored, for use with offsets; otherwise a format's implied offset is subtracted.
// Included inside the namespace of the instruction set.

struct FormatF32 {
    static constexpr Kind KIND = Kind::f32;
    static constexpr int STEP = W;
    static constexpr bool GROUPED = false;
    static const u8* row(const Matrix& m, i64 r) { return static_cast<const u8*>(m.codes) + r * m.cols * 4; }
    static V load_some(const u8* row, i64 k, int n) {
        return loadn(reinterpret_cast<const float*>(row) + k, n);
    }
    template <bool RAW>
    static void load(V* v, const u8* row, i64 k) {
        memcpy(v, row + 4 * k, sizeof(V));
    }
};

struct FormatF16 {
    static constexpr Kind KIND = Kind::f16;
    static constexpr int STEP = W;
    static constexpr bool GROUPED = false;
    static const u8* row(const Matrix& m, i64 r) { return static_cast<const u8*>(m.codes) + r * m.cols * 2; }
    static V load_some(const u8* row, i64 k, int n) {
        return loadn_f16(reinterpret_cast<const u16*>(row) + k, n);
    }
    template <bool RAW>
    static void load(V* v, const u8* row, i64 k) {
        v[0] = load_f16(reinterpret_cast<const u16*>(row) + k);
    }
};

struct FormatBF16 {
    static constexpr Kind KIND = Kind::bf16;
    static constexpr int STEP = W;
    static constexpr bool GROUPED = false;
    static const u8* row(const Matrix& m, i64 r) { return static_cast<const u8*>(m.codes) + r * m.cols * 2; }
    static V load_some(const u8* row, i64 k, int n) {
        return loadn_bf16(reinterpret_cast<const u16*>(row) + k, n);
    }
    template <bool RAW>
    static void load(V* v, const u8* row, i64 k) {
        v[0] = load_bf16(reinterpret_cast<const u16*>(row) + k);
    }
};

struct FormatInt8 {
    static constexpr Kind KIND = Kind::int8;
    static constexpr int STEP = 16;
    static constexpr bool GROUPED = true;
    static const u8* row(const Matrix& m, i64 r) { return static_cast<const u8*>(m.codes) + r * m.cols; }
    template <bool RAW>
    static void load(V* v, const u8* row, i64 k) {
        const i8* p = reinterpret_cast<const i8*>(row) + k;
        for (int i = 0; i < 16 / W; ++i) v[i] = load_i8(p + i * W);
    }
};

struct FormatInt4 {
    static constexpr Kind KIND = Kind::int4;
    static constexpr int STEP = 32;
    static constexpr bool GROUPED = true;
    static const u8* row(const Matrix& m, i64 r) {
        return static_cast<const u8*>(m.codes) + r * (m.cols / 2);
    }
    template <bool RAW>
    static void load(V* v, const u8* row, i64 k) {
        const u8* p = row + k / 2;
        for (int i = 0; i < 16 / W; ++i) {
            v[i] = load_nibbles<0, RAW ? 0 : 8>(p + i * W);
            v[16 / W + i] = load_nibbles<4, RAW ? 0 : 8>(p + i * W);
        }
    }
};

struct FormatTernary {
    static constexpr Kind KIND = Kind::ternary;
    static constexpr int STEP = 32;  // half of a 64-weight unit, since a group may be one
    static constexpr bool GROUPED = true;
    static const u8* row(const Matrix& m, i64 r) {
        return static_cast<const u8*>(m.codes) + r * (m.cols / 4);
    }
    template <int SHIFT>
    static void half(V* v, const u8* p) {
        for (int i = 0; i < 16 / W; ++i) {
            v[i] = load_bits<SHIFT, 3, 1>(p + i * W);
            v[16 / W + i] = load_bits<SHIFT + 2, 3, 1>(p + i * W);
        }
    }
    template <bool RAW>
    static void load(V* v, const u8* row, i64 k) {
        const u8* p = row + k / 64 * 16;
        if ((k & 32) != 0) {
            half<4>(v, p);
        } else {
            half<0>(v, p);
        }
    }
};

#include "linear/planes.hpp"

// Number i of scales or offsets, of whose float16 for several groups it is number `super`.
MC_INLINE float float_at(const GroupFloats& g, i64 i, i64 super) {
    if (g.type == ScaleType::f16) return f16_to_f32(static_cast<const u16*>(g.data)[i]);
    if (g.type == ScaleType::f32) return static_cast<const float*>(g.data)[i];
    const u8 byte = static_cast<const u8*>(g.data)[i];
    const int step = g.type == ScaleType::steps ? static_cast<i8>(byte) : g.type == ScaleType::low_steps ? byte & 15 : byte >> 4;
    return static_cast<float>(step) * f16_to_f32(g.supers[super]);  // exact
}
// The same in rows, and in panels, of a panel's row `lane` and vector `i` of kPanelRows.
MC_INLINE float float_at(const GroupFloats& g, i64 i) { return float_at(g, i, i >> g.shift); }
MC_INLINE float panel_float_at(const GroupFloats& g, i64 i, i64 lane) {
    return float_at(g, i * kPanelRows + lane, (i >> g.shift) * kPanelRows + lane);
}

// Columns [begin, end) of row r, times `scale`, to out. Grouped formats: begin is a multiple of 64,
// end a multiple of STEP.
template <class F>
static void unpack_row(const Matrix& m, i64 r, i64 begin, i64 end, float scale, float* out) {
    const u8* row = F::row(m, r);
    V v[F::STEP / W];
    if constexpr (!F::GROUPED) {
        const V factor = set1(scale);
        i64 k = begin;
        for (; k + W <= end; k += W) {
            F::template load<true>(v, row, k);
            store(out + k - begin, mul(v[0], factor));
        }
        if (k < end) {
            const int n = static_cast<int>(end - k);
            storen(out + k - begin, mul(F::load_some(row, k, n), factor), n);
        }
    } else {
        const i64 groups = m.cols / m.group;
        for (i64 k = begin; k < end;) {
            const i64 g = k / m.group;
            const i64 stop = (g + 1) * m.group < end ? (g + 1) * m.group : end;
            const i64 at = r * groups + g;
            const V s = set1(float_at(scales_of(m), at) * scale);
            const V o = set1(m.offsets ? float_at(offsets_of(m), at) * scale : 0.0F);
            for (; k < stop; k += F::STEP) {
                if (m.offsets != nullptr) {
                    F::template load<true>(v, row, k);
                } else {
                    F::template load<false>(v, row, k);
                }
                for (int i = 0; i < F::STEP / W; ++i) store(out + k - begin + i * W, fma(v[i], s, o));
            }
        }
    }
}
