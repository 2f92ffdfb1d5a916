// From weights in panels to the pairs of 16-bit integers of linear/pairs.hpp: no transposition is needed. Included inside
// the namespace of the instruction set, with MC_HAS_PANELS only.

// Weight rows [r, r + W), W dividing r, at depth k, to lanes from `lane` on.
template <class F>
static void unpack_panel(const Matrix& m, i64 r, i64 lane, i64 k, const Segments& s, PairPanel* panel) {
    constexpr i64 kStep = PanelStep<F>::value, kParts = CodeBytes<F>::kParts;
    constexpr int kBits = 8 / static_cast<int>(kParts);
    const i64 p = r / kPanelRows, row = r % kPanelRows;
    const i64 groups = m.cols / m.group, chunks = (depth_end(m, k) - k) / kStep;
    const u8* codes = static_cast<const u8*>(m.codes) + (p * (m.cols / kStep) + k / kStep) * 64 + 4 * row;
    const Words bias = all_words(kParts == 1 ? 0 : panel_bias<F>(m));
    for (i64 c = 0; c < chunks; ++c) {
        const Words raw = load_words(codes + c * 64);
        MC_UNROLL
        for (int part = 0; part < kParts; ++part) {
            MC_UNROLL
            for (int i = 0; i < 2; ++i) {
                const Words pairs = byte_pairs<kBits>(raw, part, i, bias);
                store_words(panel->pairs[(c * kStep + 4 * part) / 2 + i] + lane, pairs);
            }
        }
    }
    const auto floats = [&](const void* data, bool half, i64 at) {
        return half ? load_f16(static_cast<const u16*>(data) + at) : load(static_cast<const float*>(data) + at);
    };
    for (int g = 0; g < s.count; ++g) {
        const i64 at = (p * groups + s.group[g]) * kPanelRows + row;
        store(panel->scales[g] + lane, floats(m.scales, m.half_scales, at));
        if (m.offsets != nullptr) store(panel->offsets[g] + lane, floats(m.offsets, m.half_offsets, at));
    }
}

// Weight rows [r, r + rows), r a multiple of 16, at depth k.
template <class F>
static void unpack_panels(const Matrix& m, i64 r, i64 rows, i64 k, const Segments& s, PairPanel* panel) {
    for (i64 lane = 0; lane < rows; lane += W) unpack_panel<F>(m, r + lane, lane, k, s, panel);
}
