// Bytes of x by VNNI: vpdpbusd multiplies four codes of each row by four bytes of x. For linear/panel_dots.hpp.

constexpr int kMostByteRows = W == 16 ? 8 : 4;  // x rows at once
// x rows from which on they are words: measured (docs/log.md). For codes of 2 bits unpacking to words costs most of what it saves.
template <class F>
constexpr i64 least_words = is_planes<F> ? 3 : W == 16 && F::KIND == Kind::ternary ? 7 : 5;
template <class F>
constexpr bool bytes_fit = true;  // sums have 32 bits

template <class F, int NX>
struct Sums<F, NX, XForm::halves> {
    IntLanes high[NX], low[NX];

    MC_INLINE void begin(Sums& s, const i32* shifts, i64 pitch) {
        MC_UNROLL
        for (int j = 0; j < NX; ++j) {
            s.low[j] = all_ints(shifts[j * pitch]).v;
            MC_ZERO(s.high[j]);
        }
    }
    MC_INLINE void quad(Sums& s, int, PanelBytes codes, const u8* x, const PanelX& layout) {
        MC_UNROLL
        for (int j = 0; j < NX; ++j, x += layout.pitch) {
            sum_byte_products(s.high[j], codes, x);
            sum_byte_products(s.low[j], codes, x + layout.cols);
        }
    }
    MC_INLINE Ints sum(const Sums& s, int j) { return join_halves({s.high[j]}, {s.low[j]}); }
};

template <class F, int NX>
struct Sums<F, NX, XForm::high> {
    IntLanes all[NX];

    MC_INLINE void begin(Sums& s, const i32* shifts, i64 pitch) {
        MC_UNROLL
        for (int j = 0; j < NX; ++j) s.all[j] = all_ints(shifts[j * pitch]).v;
    }
    MC_INLINE void quad(Sums& s, int, PanelBytes codes, const u8* x, const PanelX& layout) {
        MC_UNROLL
        for (int j = 0; j < NX; ++j, x += layout.pitch) sum_byte_products(s.all[j], codes, x);
    }
    MC_INLINE Ints sum(const Sums& s, int j) { return {s.all[j]}; }
};

constexpr int kInt8Rows = 6;  // x rows at once, of many in 8 bits

// Columns [0, columns) of ROWS rows of x, `pitch` apart, by unpacked codes of COLUMNS vectors.
template <class F, int ROWS, int COLUMNS>
MC_INLINE void dot_int8_unit(const u8* x, i64 pitch, i64 columns, const u8* codes, Ints (*sum)[COLUMNS]) {
    for (const u8* end = x + columns; x < end; x += 4, codes += 4 * kInt8Lanes) {
        IntLanes right[COLUMNS];
        MC_UNROLL
        for (int b = 0; b < COLUMNS; ++b) right[b] = load_panel(codes + b * 4 * W);
        MC_UNROLL
        for (int a = 0; a < ROWS; ++a) {
            const IntLanes left = four_everywhere(x + a * pitch);
            MC_UNROLL
            for (int b = 0; b < COLUMNS; ++b) sum[a][b].v = add_byte_products(sum[a][b].v, right[b], left);
        }
    }
}
