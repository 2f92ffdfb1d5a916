// Many rows of x and grouped weights by dot products of pairs of 16-bit integers summed in 32 bits: a kernel for
// linear/blocks.hpp.
//
// Codes are exact as int16, x becomes int16 with a scale for each row and depth block, and sums are exact until a group's
// scale multiplies them (vpdpwssd of VNNI; vpmaddwd and an addition in AVX2): up to twice the products of a float32
// fma. Lanes are weight rows. Included inside the
// namespace of the instruction set, with MC_HAS_PAIRS only.

constexpr i64 kPairs = kBlockDepth / 2;
constexpr int kPairTile = 6;         // x rows at once in registers
constexpr i64 kPairPanel = 2 * W;    // weight rows side by side

// One depth block of kPairTile rows of x: word t of a row holds columns 2t and 2t + 1. Sums are those of a segment's
// integers, for offsets.
struct alignas(64) PairTile {
    u32 pairs[kPairTile][kPairs];
    float scale[kPairTile];
    float sums[kMostSegments][kPairTile];
};

// One depth block of kPairPanel unpacked weight rows: word t of all rows lie together.
struct alignas(64) PairPanel {
    u32 pairs[kPairs][kPairPanel];
    float scales[kMostSegments][kPairPanel];
    float offsets[kMostSegments][kPairPanel];
};

// 16 bytes as 16 words, and codes out of them, without their implied offset where `bias` is kBias.
MC_INLINE __m256i wide_bytes(const u8* p) {
    return _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

MC_INLINE void store_codes(u16* to, __m256i codes, __m256i bias) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_sub_epi16(codes, bias));
}

// All weights that 16 bytes of codes hold, as 16-bit integers.
template <class F>
struct CodeWords;

template <>
struct CodeWords<FormatInt8> {
    static constexpr int kParts = 1;
    static void store(u16* to, const u8* p, bool) {
        const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
        store_codes(to, _mm256_cvtepi8_epi16(codes), _mm256_setzero_si256());
    }
};

template <>
struct CodeWords<FormatInt4> {
    static constexpr int kParts = 2;
    static void store(u16* to, const u8* p, bool raw) {
        const __m256i codes = wide_bytes(p), bias = _mm256_set1_epi16(raw ? 0 : 8);
        store_codes(to, _mm256_and_si256(codes, _mm256_set1_epi16(15)), bias);
        store_codes(to + 16, _mm256_srli_epi16(codes, 4), bias);
    }
};

template <>
struct CodeWords<FormatTernary> {
    static constexpr int kParts = 4;
    static void store(u16* to, const u8* p, bool) {
        const __m256i codes = wide_bytes(p), mask = _mm256_set1_epi16(3), bias = _mm256_set1_epi16(1);
        store_codes(to, _mm256_and_si256(codes, mask), bias);
        store_codes(to + 16, _mm256_and_si256(_mm256_srli_epi16(codes, 2), mask), bias);
        store_codes(to + 32, _mm256_and_si256(_mm256_srli_epi16(codes, 4), mask), bias);
        store_codes(to + 48, _mm256_srli_epi16(codes, 6), bias);
    }
};

// Columns [k, end) of weight row r: codes without their implied offset.
template <class F>
static void unpack_words(const Matrix& m, i64 r, i64 k, i64 end, u16* to) {
    if constexpr (is_planes<F>) {
        const __m256i bias = _mm256_set1_epi16(m.offsets != nullptr ? 0 : F::BIAS);
        u8 codes[16];
        for (i64 at = 0; at < end - k; at += 16) {
            F::sixteen(codes, F::row(m, r), k + at);
            store_codes(to + at, wide_bytes(codes), bias);
        }
    } else {
        using Codes = CodeWords<F>;
        const u8* p = F::row(m, r) + k / Codes::kParts;
        for (i64 at = 0; at < end - k; at += 16 * Codes::kParts, p += 16) Codes::store(to + at, p, m.offsets != nullptr);
    }
}

// kPairTile rows of x by COLUMNS vectors of weight rows.
template <int COLUMNS, bool OFFSETS>
static void tile_pairs(const Segments& s, const PairTile& x, const PairPanel& w, const BlockOutput& out) {
    V total[kPairTile][COLUMNS];
    prefetch_output<kPairTile, COLUMNS * W>(out);
    MC_UNROLL
    for (int a = 0; a < kPairTile; ++a) {
        MC_UNROLL
        for (int b = 0; b < COLUMNS; ++b) total[a][b] = zero();
    }
    i64 t = 0;
    for (int segment = 0; segment < s.count; ++segment) {
        Ints sum[kPairTile][COLUMNS];
        MC_UNROLL
        for (int a = 0; a < kPairTile; ++a) {
            MC_UNROLL
            for (int b = 0; b < COLUMNS; ++b) sum[a][b] = no_ints();
        }
        for (; 2 * t < s.stop[segment]; ++t) {
            Words right[COLUMNS];
            MC_UNROLL
            for (int b = 0; b < COLUMNS; ++b) right[b] = load_words(w.pairs[t] + W * b);
            MC_UNROLL
            for (int a = 0; a < kPairTile; ++a) {
                const Words left = all_pairs(x.pairs[a][t]);
                MC_UNROLL
                for (int b = 0; b < COLUMNS; ++b) sum[a][b] = dot_tile(sum[a][b], left, right[b]);
            }
        }
        MC_UNROLL
        for (int b = 0; b < COLUMNS; ++b) {
            const V scale = load(w.scales[segment] + W * b);
            MC_UNROLL
            for (int a = 0; a < kPairTile; ++a) total[a][b] = fma(to_floats(sum[a][b]), scale, total[a][b]);
            if constexpr (OFFSETS) {
                const V offset = load(w.offsets[segment] + W * b);
                MC_UNROLL
                for (int a = 0; a < kPairTile; ++a) total[a][b] = fma(set1(x.sums[segment][a]), offset, total[a][b]);
            }
        }
    }
    finish_tile<kPairTile, COLUMNS>(x, out, total);
}

#if defined(MC_HAS_PANELS)
#include "linear/panel_pairs.hpp"
#endif

struct PairKernel {
    using XTile = PairTile;
    using Panel = PairPanel;
    static constexpr i64 kRows = kPairTile;
    static constexpr i64 kPanelRows = kPairPanel;

    // x rows [row, row + kRows), those from `last` on taken as zeros, at depth k.
    static void pack(const LinearArgs& args, i64 row, i64 last, i64 k, PairTile* to) {
        const Matrix& m = args.w;
        const Segments s = find_segments(m, k);
        const i64 end = depth_end(m, k);
        if (row + kRows > last || end - k < kBlockDepth) memset(to->pairs, 0, sizeof to->pairs);
        pack_scaled(args, row, kRows, last, s, to, [&](i64 j, const float* x, float* sums) {
            u16* words = reinterpret_cast<u16*>(to->pairs[j]);
            return quantise_depth(x, k, end, s, sums, [words](i64 at, const Ints* q) { store_int16(words + at, q); });
        });
    }

    // Weight rows [r, r + rows) at depth k, with zeros up to whole vectors.
    template <class F>
    static void unpack(const Matrix& m, i64 r, i64 rows, i64 k, const Segments& s, PairPanel* panel) {
        const i64 end = depth_end(m, k);
#if defined(MC_HAS_PANELS)
        if (m.panels) return unpack_panels<F>(m, r, rows, k, s, panel);
#endif
        for (i64 half = 0; half < rows; half += W) {
            alignas(64) u16 words[W][kBlockDepth];
            const i64 count = rows - half < W ? rows - half : W;
            if (count < W || end - k < kBlockDepth) memset(words, 0, sizeof words);
            for (i64 i = 0; i < count; ++i) unpack_words<F>(m, r + half + i, k, end, words[i]);
            copy_groups(m, r + half, count, s, panel->scales[0] + half, panel->offsets[0] + half, kPairPanel);
            for (i64 t = 0; 2 * t < end - k; t += W) {
                Words v[W];
                for (int i = 0; i < W; ++i) v[i] = load_words(words[i] + 2 * t);
                transpose_pairs(v);
                for (int i = 0; i < W; ++i) store_words(panel->pairs[t + i] + half, v[i]);
            }
        }
    }

    template <int COLUMNS>
    static void choose(const Segments& s, const PairTile& x, const PairPanel& w, const BlockOutput& out) {
        if (out.args->w.offsets != nullptr) {
            tile_pairs<COLUMNS, true>(s, x, w, out);
        } else {
            tile_pairs<COLUMNS, false>(s, x, w, out);
        }
    }

    static void multiply(const Segments& s, const PairTile& x, const PairPanel& w, const BlockOutput& out) {
        if (out.columns > W) {
            choose<2>(s, x, w, out);
        } else {
            choose<1>(s, x, w, out);
        }
    }
};

template <>
struct Multiply<Method::pairs> {
    template <class F>
    static void run(Pool& pool, const SharedProducts& all) {
        linear_blocks<F, PairKernel>(pool, all);
    }
};
