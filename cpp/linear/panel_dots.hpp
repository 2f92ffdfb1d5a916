// Products with panels: how integers of x meet codes, and one order of additions of what that gives (linear/quantise.hpp).
//
// A panel is one vector of 16 rows, or two of 8, which are gone through a block after the other. Sums<F, NX, FORM> adds up
// the whole numbers of a piece: begin(shifts, pitch), quad(number, codes, x, x layout) for each four columns, sum(row of x).
// For linear/panels.hpp.

constexpr int kInt8Vectors = 2;                   // of weight rows side by side, for linear/int8.hpp
constexpr i64 kInt8Lanes = kInt8Vectors * W;
constexpr i64 kScalesAhead = 1024;                // bytes
constexpr i64 kPanelSpan = 32;  // columns gone through without a branch

// Bytes of a row of x that 16 columns take.
template <XForm FORM>
constexpr i64 kSixteenBytes = FORM == XForm::words ? 32 : 16;

template <class F, int NX, XForm FORM>
struct Sums;

// x in words: the codes of each four columns become words in two vectors, of the first and third, then of the others.
template <class F, int NX>
struct Sums<F, NX, XForm::words> {
    Ints all[NX];

    MC_INLINE void begin(Sums& s, const i32* shifts, i64 pitch) {
        MC_UNROLL
        for (int j = 0; j < NX; ++j) s.all[j] = all_ints(shifts[j * pitch]);
    }
    MC_INLINE void quad(Sums& s, int, PanelBytes codes, const u8* x, const PanelX& layout) {
        constexpr bool kSigned = F::KIND == Kind::int8;
        const Words even = kSigned ? low_bytes({codes}) : low_unsigned({codes});
        const Words odd = kSigned ? high_bytes({codes}) : high_unsigned({codes});
        MC_UNROLL
        for (int j = 0; j < NX; ++j, x += layout.pitch) {
            dot_pair(s.all[j], even, x);
            dot_pair(s.all[j], odd, x + 4);
        }
    }
    MC_INLINE Ints sum(const Sums& s, int j) { return s.all[j]; }
};

#if defined(MC_HAS_VNNI)
#include "linear/panels_vnni.hpp"
#else
#include "linear/panels_avx2.hpp"
#endif

// x rows at once, most and least. Where pieces may begin in the middle of a unit, GCC keeps no more sums than those of four in registers.
template <class F, XForm FORM>
constexpr int rows_at_once() {
    if constexpr (is_planes<F>) {
        if (PanelPlanes<F>::kColumns == 32 && has_half_spans<F>) return 4;
    }
    // Of int4 with AVX2 eight rows take twice the time of seven, with nothing to be seen in the code: not explained.
    if (FORM == XForm::words) return !kHasVnni && F::KIND == Kind::int4 ? 6 : 8;
    constexpr i64 kFewer = least_words<F> - 1;  // of two bytes there are no more
    return FORM == XForm::halves && kFewer < kMostByteRows ? static_cast<int>(kFewer) : kMostByteRows;
}
template <class F, XForm FORM>
constexpr i64 least_at_once() {
    if (FORM != XForm::words) return 1;
    constexpr i64 kHalf = rows_at_once<F, FORM>() / 2;  // of more than fit at once
    return least_words<F> < kHalf ? least_words<F> : kHalf;
}

// Codes number `part` of each byte.
template <class F, XForm FORM>
MC_INLINE PanelBytes part_of_codes(PanelBytes raw, int part) {
    constexpr int kBits = 8 / static_cast<int>(CodeBytes<F>::kParts);
    if (kBits < 8) return bits_from(raw, part * kBits, (1 << kBits) - 1);
    return FORM == XForm::words ? raw : flip_signs(raw);
}

// Vectors of weight rows that are gone through side by side. By one row of x registers hold the sums of both that AVX2 needs for a
// panel, which then share what is broadcast of x.
template <int NX>
constexpr int kSideBySide = NX == 1 ? kPanelRows / W : 1;

// 16 columns of codes in two planes.
template <class F, int NX, XForm FORM, int NV>
struct PlanesDot {
    static constexpr i64 kSixteen = kSixteenBytes<FORM>;
    bool ahead;  // whether to fetch codes of later panels
    const PanelX* x;
    Sums<F, NX, FORM>* sums;

    template <int H>
    MC_INLINE void run(const PlanesDot& to, const u8* unit, const u8* row) {
        using P = PanelPlanes<F>;
        for (i64 b = 0; to.ahead && b < P::kBytes * 16 / P::kColumns; b += 64) prefetch_far(unit + H * P::kBytes / 2 + b);
        PanelBytes w[NV][4];
        MC_UNROLL
        for (int v = 0; v < NV; ++v) P::template get<H>(w[v], unit + 4 * W * v);
        MC_UNROLL
        for (int t = 0; t < 4; ++t) {
            MC_UNROLL
            for (int v = 0; v < NV; ++v) {
                MC_KEEP(w[v][t]);
                to.sums[v].quad(to.sums[v], t, w[v][t], row + t * (kSixteen / 4), *to.x);
            }
        }
    }
};

// SPAN columns; row: theirs of the first x row, codes: those of the vectors' rows there.
template <class F, int NX, XForm FORM, int NV, i64 SPAN>
MC_INLINE void dot_panel_span(bool ahead, const u8* codes, const u8* row, const PanelX& x, Sums<F, NX, FORM>* sums) {
    constexpr int kParts = static_cast<int>(CodeBytes<F>::kParts);
    MC_UNROLL
    for (int c = 0; c < SPAN / PanelStep<F>::value; ++c) {
        if (ahead) prefetch_far(codes + c * 64);
        PanelBytes raw[NV];
        MC_UNROLL
        for (int v = 0; v < NV; ++v) raw[v] = load_panel(codes + c * 64 + 4 * W * v);
        MC_UNROLL
        for (int part = 0; part < kParts; ++part) {
            const int t = c * kParts + part;
            MC_UNROLL
            for (int v = 0; v < NV; ++v) {
                sums[v].quad(sums[v], t, part_of_codes<F, FORM>(raw[v], part), row + t * (kSixteenBytes<FORM> / 4), x);
            }
        }
    }
}

// The columns of a piece, passed by in row and codes; ahead: whether to fetch codes of later panels.
template <class F, int NX, XForm FORM, int NV>
MC_INLINE void dot_panel_piece(bool ahead, const Piece& piece, const u8*& codes, const u8*& row, const PanelX& x,
                               Sums<F, NX, FORM>* sums) {
    const i64 sixteens = piece.sixteens;
    if constexpr (is_planes<F>) {
        each_sixteen<F, has_half_spans<F>>(sixteens, piece.odd, codes, row, PlanesDot<F, NX, FORM, NV>{ahead, &x, sums});
    } else {
        constexpr i64 kSpanBytes = panel_bytes<F>(kPanelSpan), kRowBytes = 2 * kSixteenBytes<FORM>;
        for (i64 spans = sixteens / 2; spans > 0; --spans, row += kRowBytes, codes += kSpanBytes) {
            dot_panel_span<F, NX, FORM, NV, kPanelSpan>(ahead, codes, row, x, sums);
        }
        if constexpr (has_half_spans<F>) {
            if (sixteens % 2 == 0) return;
            dot_panel_span<F, NX, FORM, NV, kPanelSpan / 2>(ahead, codes, row, x, sums);
            row += kRowBytes / 2;
            codes += kSpanBytes / 2;
        }
    }
}

// Where a block begins.
struct PanelPlace {
    const Piece* piece;
    const u8 *codes, *row;
    const i32* shifts;
    i64 group;
};

// part[v][j] = the parts of a block, of the W weight rows from `lane` + W v on; goes on to the next block.
template <class F, int NX, XForm FORM, int NV>
MC_INLINE void dot_panel_block(const Matrix& m, i64 lane, const PanelX& x, PanelPlace& at, V (*part)[NX]) {
    static_assert(kSuper % kBlockDepth == 0, "a block's groups have the same supers");
    // By several rows of x it is faster to load them again than to keep them.
    constexpr bool kKept = NX == 1;
    const GroupFloats scales = scales_of(m), offsets = offsets_of(m);
    const i64 pitch = x.pitch / 4;
    V of_scales[NV], of_offsets[NV];
    MC_UNROLL
    for (int v = 0; v < NV; ++v) {
        of_scales[v] = kKept ? panel_super(scales, at.group, lane + W * v) : zero();
        of_offsets[v] = kKept ? panel_super(offsets, at.group, lane + W * v) : zero();
        MC_UNROLL
        for (int j = 0; j < NX; ++j) part[v][j] = zero();
    }
    for (bool last = false; !last; ++at.piece, ++at.shifts) {
        Sums<F, NX, FORM> sums[NV];
        MC_UNROLL
        for (int v = 0; v < NV; ++v) sums[v].begin(sums[v], at.shifts, pitch);
        dot_panel_piece<F, NX, FORM, NV>(lane == 0, *at.piece, at.codes, at.row, x, sums);
        if (lane == 0) prefetch(static_cast<const char*>(m.scales) + at.group * kPanelRows * scale_bytes(m.scale_type) + kScalesAhead);
        MC_UNROLL
        for (int v = 0; v < NV; ++v) {
            const i64 row = lane + W * v;
            const V scale = kKept ? panel_lanes(scales, at.group, row, of_scales[v]) : panel_lanes(scales, at.group, row);
            MC_UNROLL
            for (int j = 0; j < NX; ++j) part[v][j] = fma(to_floats(sums[v].sum(sums[v], j)), scale, part[v][j]);
        }
        if (m.offsets != nullptr) {
            const float* of_x = reinterpret_cast<const float*>(at.shifts) + x.sums_at;
            MC_UNROLL
            for (int v = 0; v < NV; ++v) {
                const i64 row = lane + W * v;
                const V offset = kKept ? panel_lanes(offsets, at.group, row, of_offsets[v]) : panel_lanes(offsets, at.group, row);
                MC_UNROLL
                for (int j = 0; j < NX; ++j) part[v][j] = fma(set1(of_x[j * pitch]), offset, part[v][j]);
            }
        }
        at.group += at.piece->group_ends ? 1 : 0;
        last = at.piece->block_ends;
    }
}

// total[i][j] = the products of rows [W i, W i + W) of panel p and x row first + j.
template <class F, int NX, XForm FORM>
MC_INLINE void dot_panel(const Matrix& m, i64 p, const PanelX& x, i64 first, V (*total)[NX]) {
    constexpr int kVectors = kPanelRows / W, kAtOnce = kSideBySide<NX>;
    const i64 pitch = x.pitch / 4;
    const float *scales = x.scales(first), *end = scales + (m.cols + x.block - 1) / x.block;
    PanelPlace at[kVectors / kAtOnce];
    for (int i = 0; i < kVectors / kAtOnce; ++i) {
        const u8* codes = static_cast<const u8*>(m.codes) + p * panel_bytes<F>(m.cols) + 4 * W * kAtOnce * i;
        at[i] = {x.pieces, codes, x.rows + first * x.pitch, x.shifts(first), p * (m.cols / m.group)};
    }
    for (int i = 0; i < kVectors; ++i) {
        for (int j = 0; j < NX; ++j) total[i][j] = zero();
    }
    for (; scales < end; ++scales) {
        MC_UNROLL
        for (int i = 0; i < kVectors; i += kAtOnce) {
            V part[kAtOnce][NX];
            dot_panel_block<F, NX, FORM, kAtOnce>(m, i * W, x, at[i / kAtOnce], part);
            MC_UNROLL
            for (int v = 0; v < kAtOnce; ++v) {
                MC_UNROLL
                for (int j = 0; j < NX; ++j) total[i + v][j] = fma(part[v][j], set1(scales[j * pitch]), total[i + v][j]);
            }
        }
    }
}

// Puts W products of an x row to y, those beyond the last weight row left out.
MC_INLINE void finish_lanes(const LinearArgs& args, i64 row, i64 column, V value) {
    const i64 left = args.w.rows - column;
    if (left <= 0) return;
    const int n = left < W ? static_cast<int>(left) : W;
    float* y = args.y + row * args.w.rows + column;
    if (args.bias != nullptr) value = add(value, loadn(args.bias + column, n));
    if (args.add) value = fma(set1(args.scale), value, loadn(y, n));
    storen(y, value, n);
}
