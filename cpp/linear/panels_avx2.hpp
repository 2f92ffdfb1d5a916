// Bytes of x by AVX2: vpmaddubsw multiplies unsigned codes by signed bytes and adds two neighbours in 16 bits, which
// hold the sums of `together` such products: of codes below 64, never of 8 bits. For linear/panel_dots.hpp.

constexpr int kMostByteRows = 4;  // x rows at once
template <class F>
constexpr bool bytes_fit = CodeBytes<F>::kParts != 1;
// x rows from which on they are words: measured (docs/log.md).
template <class F>
constexpr i64 least_words = !bytes_fit<F> ? 1 : is_planes<F> ? 3 : 4;

// How many products of two neighbours a sum of 16 bits holds: 2 * 128 times the largest code each. In a unit of planes
// there are four.
template <class F>
constexpr int together() {
    if constexpr (is_planes<F>) return F::kLow + F::kHigh == 6 ? 2 : 4;
    return 8;
}

MC_INLINE __m256i broadcast_four(const u8* p) {
    i32 word;
    memcpy(&word, p, sizeof word);
    return _mm256_set1_epi32(word);
}

MC_INLINE __m256i add_in_16_bits(__m256i sum, __m256i term) {
#if defined(__GNUC__)
    // As an intrinsic GCC makes trees of these sums, of more registers than there are.
    __asm__("vpaddw %1, %0, %0" : "+x"(sum) : "x"(term));
    return sum;
#else
    return _mm256_add_epi16(sum, term);
#endif
}

// sum + codes * four bytes of x, or the first such products.
MC_INLINE __m256i add_bytes(bool first, __m256i sum, __m256i codes, __m256i four) {
    const __m256i products = _mm256_maddubs_epi16(codes, four);
    return first ? products : add_in_16_bits(sum, products);
}

// sum + factor * both halves of each lane.
MC_INLINE __m256i add_both(__m256i sum, __m256i words, int factor) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(words, _mm256_set1_epi16(static_cast<short>(factor))));
}

template <class F, int NX>
struct Sums<F, NX, XForm::halves> {
    __m256i all[NX], high[NX], low[NX];

    MC_INLINE void begin(Sums& s, const i32* shifts, i64 pitch) {
        MC_UNROLL
        for (int j = 0; j < NX; ++j) s.all[j] = _mm256_set1_epi32(shifts[j * pitch]);
    }
    MC_INLINE void quad(Sums& s, int t, PanelBytes codes, const u8* x, const PanelX& layout) {
        constexpr int kTogether = together<F>();
        MC_UNROLL
        for (int j = 0; j < NX; ++j, x += layout.pitch) {
            s.high[j] = add_bytes(t % kTogether == 0, s.high[j], codes, broadcast_four(x));
            s.low[j] = add_bytes(t % kTogether == 0, s.low[j], codes, broadcast_four(x + layout.cols));
        }
        if (t % kTogether < kTogether - 1) return;
        MC_UNROLL
        for (int j = 0; j < NX; ++j) s.all[j] = add_both(add_both(s.all[j], s.high[j], 256), s.low[j], 1);
    }
    MC_INLINE Ints sum(const Sums& s, int j) { return {s.all[j]}; }
};

template <class F, int NX>
struct Sums<F, NX, XForm::high> {
    __m256i all[NX], high[NX];

    MC_INLINE void begin(Sums& s, const i32* shifts, i64 pitch) {
        MC_UNROLL
        for (int j = 0; j < NX; ++j) s.all[j] = _mm256_set1_epi32(shifts[j * pitch]);
    }
    MC_INLINE void quad(Sums& s, int t, PanelBytes codes, const u8* x, const PanelX& layout) {
        constexpr int kTogether = together<F>();
        MC_UNROLL
        for (int j = 0; j < NX; ++j, x += layout.pitch) {
            s.high[j] = add_bytes(t % kTogether == 0, s.high[j], codes, broadcast_four(x));
        }
        if (t % kTogether < kTogether - 1) return;
        MC_UNROLL
        for (int j = 0; j < NX; ++j) s.all[j] = add_both(s.all[j], s.high[j], 1);
    }
    MC_INLINE Ints sum(const Sums& s, int j) { return {s.all[j]}; }
};

constexpr int kInt8Rows = 4;  // x rows at once, of many in 8 bits

// Columns [0, columns) of ROWS rows of x, `pitch` apart, by unpacked codes of COLUMNS vectors.
template <class F, int ROWS, int COLUMNS>
MC_INLINE void dot_int8_unit(const u8* x, i64 pitch, i64 columns, const u8* codes, Ints (*sum)[COLUMNS]) {
    constexpr int kTogether = together<F>();
    for (const u8* end = x + columns; x < end;) {
        __m256i words[ROWS][COLUMNS];
        MC_UNROLL
        for (int t = 0; t < kTogether; ++t, x += 4, codes += 4 * kInt8Lanes) {
            MC_UNROLL
            for (int b = 0; b < COLUMNS; ++b) {
                const __m256i right = load_panel(codes + b * 4 * W);
                MC_UNROLL
                for (int a = 0; a < ROWS; ++a) {
                    words[a][b] = add_bytes(t == 0, words[a][b], right, broadcast_four(x + a * pitch));
                }
            }
        }
        MC_UNROLL
        for (int a = 0; a < ROWS; ++a) {
            MC_UNROLL
            for (int b = 0; b < COLUMNS; ++b) sum[a][b].v = add_both(sum[a][b].v, words[a][b], 1);
        }
    }
}
