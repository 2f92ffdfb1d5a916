// From weights in panels to the pairs of 16-bit integers of linear/pairs.hpp: no transposition is needed. Included inside
// the namespace of the instruction set, with MC_HAS_PANELS only.

// Pairs of 16 columns of codes in two planes to their places, and on.
template <class F>
struct PlanesToPairs {
    static constexpr i64 kSixteen = 0;
    u32** pairs;
    Words bias;

    template <int H>
    MC_INLINE void run(const PlanesToPairs& to, const u8* unit, const u8*) {
        PanelBytes w[4];
        PanelPlanes<F>::template get<H>(w, unit);
        MC_UNROLL
        for (int t = 0; t < 4; ++t) {
            MC_UNROLL
            for (int i = 0; i < 2; ++i, *to.pairs += kPairPanel) {
                store_words(*to.pairs, byte_pairs<F::kLow + F::kHigh>({w[t]}, 0, i, to.bias));
            }
        }
    }
};

// The first `columns` of W weight rows of a panel, from `codes` on, to pairs.
template <class F>
MC_INLINE void unpack_panel_codes(const u8* codes, i64 columns, Words bias, u32* pairs) {
    if constexpr (is_planes<F>) {
        const u8* none = nullptr;
        each_sixteen<F, false>(columns / 16, false, codes, none, PlanesToPairs<F>{&pairs, bias});
    } else {
        constexpr i64 kStep = PanelStep<F>::value, kParts = CodeBytes<F>::kParts;
        constexpr int kBits = 8 / static_cast<int>(kParts);
        for (i64 c = 0; c < columns / kStep; ++c) {
            const Words raw = load_words(codes + c * 64);
            MC_UNROLL
            for (int part = 0; part < kParts; ++part) {
                MC_UNROLL
                for (int i = 0; i < 2; ++i, pairs += kPairPanel) store_words(pairs, byte_pairs<kBits>(raw, part, i, bias));
            }
        }
    }
}

// Weight rows [r, r + W), W dividing r, at depth k, to lanes from `lane` on.
template <class F>
static void unpack_panel(const Matrix& m, i64 r, i64 lane, i64 k, const Segments& s, PairPanel* panel) {
    const i64 p = r / kPanelRows, row = r % kPanelRows, groups = m.cols / m.group;
    const u8* codes = static_cast<const u8*>(m.codes) + p * panel_bytes<F>(m.cols) + panel_bytes<F>(k) + 4 * row;
    const Words bias = all_words(panel_bias<F>(m));
    unpack_panel_codes<F>(codes, depth_end(m, k) - k, bias, panel->pairs[0] + lane);
    for (int g = 0; g < s.count; ++g) {
        store(panel->scales[g] + lane, panel_lanes(scales_of(m), p * groups + s.group[g], row));
        if (m.offsets != nullptr) store(panel->offsets[g] + lane, panel_lanes(offsets_of(m), p * groups + s.group[g], row));
    }
}

// Weight rows [r, r + rows), r a multiple of 16, at depth k.
template <class F>
static void unpack_panels(const Matrix& m, i64 r, i64 rows, i64 k, const Segments& s, PairPanel* panel) {
    for (i64 lane = 0; lane < rows; lane += W) unpack_panel<F>(m, r + lane, lane, k, s, panel);
}
