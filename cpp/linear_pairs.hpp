// y = x W^T for many rows of x, by dot products of pairs of 16-bit values summed in 32 bits.
//
// Grouped weights: their codes are exact as int16, x becomes int16 with a scale for each row and depth block,
// and sums are exact until a group's scale multiplies them (vpdpwssd, of VNNI). bf16 and f16 weights: both
// sides are rounded to bf16 and summed in float32 (vdpbf16ps). Either does twice the products of a
// float32 fma. Lanes are weight rows: blocks of them are unpacked and transposed, and stay in the first cache
// level while all rows of x pass by. Included inside the namespace of the instruction set, with
// MC_HAS_BF16_DOT and MC_HAS_VNNI.

struct PairsOfBF16 {
    static constexpr bool kScaled = false;
    using Sum = __m512;
    static Sum none() { return _mm512_setzero_ps(); }
    static Sum dot(Sum sum, __m512i a, __m512i b) {
        return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
    }
    static __m512 real(Sum sum) { return sum; }
};

struct PairsOfInt16 {
    static constexpr bool kScaled = true;
    using Sum = __m512i;
    static Sum none() {
        Sum zeros;
        MC_ZERO(zeros);
        return zeros;
    }
    static Sum dot(Sum sum, __m512i a, __m512i b) { return add_word_products(sum, a, b); }
    static __m512 real(Sum sum) { return _mm512_cvtepi32_ps(sum); }
};

template <class F>
struct PairsFor {
    using Type = PairsOfInt16;
};
template <>
struct PairsFor<FormatBF16> {
    using Type = PairsOfBF16;
};
template <>
struct PairsFor<FormatF16> {
    using Type = PairsOfBF16;
};

constexpr i64 kPairDepth = 128;  // columns of W at once
constexpr i64 kPairs = kPairDepth / 2;
constexpr int kPairTile = 6;         // x rows at once in registers
constexpr i64 kPairPanel = 32;       // weight rows side by side
constexpr i64 kPairBlock = 3;        // panels of a block at most
constexpr i64 kPairRows = kPairBlock * kPairPanel;
constexpr int kMostSegments = 8;

// One depth block of kPairTile rows of x: word t of a row holds columns 2t and 2t + 1. Sums are over segments, for
// offsets.
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

// The pieces of a depth block that lie in one group each; piece s ends before pair stop[s].
struct Segments {
    int count = 0;
    i64 group[kMostSegments];
    i64 stop[kMostSegments];
};

MC_INLINE Segments find_segments(const Matrix& m, i64 k) {
    Segments s;
    const i64 end = k + kPairDepth < m.cols ? k + kPairDepth : m.cols;
    const i64 group = m.group > 0 ? m.group : m.cols;
    for (i64 at = k; at < end; ++s.count) {
        s.group[s.count] = at / group;
        at = (at / group + 1) * group < end ? (at / group + 1) * group : end;
        s.stop[s.count] = (at - k + 1) / 2;
    }
    return s;
}

// Transposes 16 x 16 words of 32 bits.
MC_INLINE void transpose16(__m512i* v) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    constexpr __mmask16 kOdd[] = {0xaaaa, 0xcccc, 0xf0f0, 0xff00};
    MC_UNROLL
    for (int step = 0; step < 4; ++step) {
        const int d = 1 << step;
        const __m512i low = _mm512_mask_add_epi32(lane, kOdd[step], lane, _mm512_set1_epi32(16 - d));
        const __m512i high = _mm512_mask_add_epi32(_mm512_add_epi32(lane, _mm512_set1_epi32(d)), kOdd[step],
                                                   lane, _mm512_set1_epi32(16));
        MC_UNROLL
        for (int i = 0; i < 16; ++i) {
            if ((i & d) != 0) continue;
            const __m512i a = v[i], b = v[i + d];
            v[i] = _mm512_permutex2var_epi32(a, low, b);
            v[i + d] = _mm512_permutex2var_epi32(a, high, b);
        }
    }
}

// Columns [k, end) of a row of x as int16; returns the scale, and with `sums` those over segments.
MC_INLINE float pack_int16(const float* x, i64 k, i64 end, const Segments& s, u16* to, float* sums) {
    const float scale = unit_scale(x + k, end - k);
    const __m512 inverse = _mm512_set1_ps(inverse_scale(scale));
    i64 at = 0;
    for (int segment = 0; segment < s.count; ++segment) {
        __m512i sum = _mm512_setzero_si512();
        for (; at < 2 * s.stop[segment]; at += 16) {
            const __m512 real = _mm512_mul_ps(_mm512_loadu_ps(x + k + at), inverse);
            const __mmask16 good = _mm512_cmp_ps_mask(real, real, _CMP_ORD_Q);
            const __m512i q = _mm512_maskz_cvtps_epi32(good, real);
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + at), _mm512_cvtepi32_epi16(q));
            sum = _mm512_add_epi32(sum, q);
        }
        if (sums != nullptr) sums[segment] = scale * static_cast<float>(_mm512_reduce_add_epi32(sum));
    }
    return scale;
}

MC_INLINE void pack_bf16(const float* x, i64 k, i64 end, u16* to) {
    for (i64 at = 0; at < end - k; at += W) {
        const int n = end - k - at < W ? static_cast<int>(end - k - at) : W;
        const __m256bh half = _mm512_cvtneps_pbh(loadn(x + k + at, n).v);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + at), reinterpret_cast<__m256i>(half));
    }
}

// x rows [row, row + kPairTile), those from `last` on taken as zeros, at depth k.
template <class P>
static void pack_pairs(const LinearArgs& args, i64 row, i64 last, i64 k, PairTile* to) {
    const Matrix& m = args.w;
    const Segments s = find_segments(m, k);
    const i64 end = k + kPairDepth < m.cols ? k + kPairDepth : m.cols;
    if (row + kPairTile > last || end - k < kPairDepth) memset(to->pairs, 0, sizeof to->pairs);
    for (i64 j = 0; j < kPairTile; ++j) {
        float sums[kMostSegments] = {};
        float scale = 0.0F;
        if (row + j < last) {
            const float* x = args.x + (row + j) * m.cols;
            u16* words = reinterpret_cast<u16*>(to->pairs[j]);
            if constexpr (P::kScaled) {
                scale = pack_int16(x, k, end, s, words, m.offsets != nullptr ? sums : nullptr);
            } else {
                pack_bf16(x, k, end, words);
            }
        }
        to->scale[j] = scale;
        for (int segment = 0; segment < s.count; ++segment) to->sums[segment][j] = sums[segment];
    }
}

MC_INLINE void store_words(u16* to, __m128i bytes, int bias) {
    const __m256i words = _mm256_sub_epi16(_mm256_cvtepu8_epi16(bytes), _mm256_set1_epi16(static_cast<short>(bias)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), words);
}

// Columns [k, end) of one weight row as words: codes without their implied offset, or bf16.
template <class F>
static void unpack_words(const Matrix& m, i64 r, i64 k, i64 end, u16* to) {
    const u8* row = F::row(m, r);
    if constexpr (F::GROUPED) {
        constexpr i64 kParts = Bytes<F>::kParts;
        const int bias = m.kind == Kind::int4 && m.offsets != nullptr ? 0 : Bytes<F>::kBias;
        const u8* p = row + k / kParts;
        for (i64 at = 0; at < end - k; at += 16 * kParts, p += 16) {
            __m512i parts[kParts];
            Bytes<F>::split(parts, _mm512_castsi128_si512(bytes16(p)));
            for (i64 i = 0; i < kParts; ++i) {
                store_words(to + at + 16 * i, _mm512_castsi512_si128(parts[i]), bias);
            }
        }
    } else {
        for (i64 at = 0; at < end - k; at += W) {
            const int n = end - k - at < W ? static_cast<int>(end - k - at) : W;
            const __m256bh half = _mm512_cvtneps_pbh(F::load_some(row, k + at, n).v);
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + at), reinterpret_cast<__m256i>(half));
        }
    }
}

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
static void unpack_panel(const Matrix& m, i64 p, i64 half, i64 k, i64 end, const Segments& s, PairPanel* panel) {
    constexpr i64 kStep = PanelStep<F>::value;
    const i64 groups = m.cols / m.group;
    const u8* codes = static_cast<const u8*>(m.codes) + (p * (m.cols / kStep) + k / kStep) * 64;
    const __m512i bias = _mm512_set1_epi16(static_cast<short>(panel_bias<F>(m)));
    for (i64 c = 0; c < (end - k) / kStep; ++c) {
        const __m512i raw = _mm512_loadu_si512(codes + c * 64);
        __m512i w[Bytes<F>::kParts], pairs[2];
        if constexpr (Bytes<F>::kParts == 1) {
            w[0] = raw;
        } else {
            Bytes<F>::split(w, raw);
        }
        for (i64 part = 0; part < Bytes<F>::kParts; ++part) {
            bytes_to_pairs<Bytes<F>::kParts == 1>(w[part], bias, pairs);
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

// Weight rows [r, r + rows) at depth k, with zeros up to 16 or 32.
template <class F>
static void unpack_pairs(const Matrix& m, i64 r, i64 rows, i64 k, const Segments& s, PairPanel* panel) {
    const i64 end = k + kPairDepth < m.cols ? k + kPairDepth : m.cols;
    const i64 groups = F::GROUPED ? m.cols / m.group : 0;
    for (i64 half = 0; half < rows; half += 16) {
        if constexpr (F::GROUPED) {
            if (m.panels) {
                unpack_panel<F>(m, (r + half) / kPanelRows, half, k, end, s, panel);
                continue;
            }
        }
        alignas(64) u16 words[16][kPairDepth];
        const i64 count = rows - half < 16 ? rows - half : 16;
        if (count < 16 || end - k < kPairDepth) memset(words, 0, sizeof words);
        for (i64 i = 0; i < count; ++i) {
            unpack_words<F>(m, r + half + i, k, end, words[i]);
            for (int g = 0; F::GROUPED && g < s.count; ++g) {
                const i64 at = (r + half + i) * groups + s.group[g];
                panel->scales[g][half + i] = float_at(m.scales, m.half_scales, at);
                if (m.offsets != nullptr) panel->offsets[g][half + i] = float_at(m.offsets, m.half_offsets, at);
            }
        }
        for (i64 t = 0; 2 * t < end - k; t += 16) {
            __m512i v[16];
            for (int i = 0; i < 16; ++i) v[i] = _mm512_load_si512(words[i] + 2 * t);
            transpose16(v);
            for (int i = 0; i < 16; ++i) _mm512_store_si512(panel->pairs[t + i] + half, v[i]);
        }
    }
}

// What becomes of a tile: sums of the depths so far, in c, and at the last depth y. x rows [row, row + rows),
// weight rows [column, column + columns).
struct PairOutput {
    const LinearArgs* args;
    float* c;
    bool first, last;
    i64 row, rows, column, columns;
};

template <int COLUMNS>
MC_INLINE void store_pairs(const PairOutput& out, __m512 (*total)[COLUMNS]) {
    if (!out.last) {
        MC_UNROLL
        for (int a = 0; a < kPairTile; ++a) {
            MC_UNROLL
            for (int b = 0; b < COLUMNS; ++b) _mm512_store_ps(out.c + a * kPairRows + 16 * b, total[a][b]);
        }
        return;
    }
    MC_UNROLL
    for (int b = 0; b < COLUMNS; ++b) {
        const i64 left = out.columns - 16 * b;
        const FinishLanes finish(*out.args, out.column + 16 * b, left < 16 ? left : 16);
        MC_UNROLL
        for (int a = 0; a < kPairTile; ++a) {
            if (a >= out.rows) break;
            finish.store(out.row + a, total[a][b]);
        }
    }
}

// kPairTile rows of x by COLUMNS vectors of weight rows.
template <class P, int COLUMNS, bool OFFSETS>
static void tile_pairs(const Segments& s, const PairTile& x, const PairPanel& w, const PairOutput& out) {
    __m512 total[kPairTile][COLUMNS];
    MC_UNROLL
    for (int a = 0; a < kPairTile; ++a) {
        // Where the result goes is not in the first cache level, and not in order.
        const float* y = out.args->y + (out.row + a) * out.args->w.rows + out.column;
        const float* to = out.last ? y : out.c + a * kPairRows;
        if (a < out.rows) _mm_prefetch(reinterpret_cast<const char*>(to), _MM_HINT_T0);
        if (COLUMNS > 1 && a < out.rows && out.columns > 16) {
            _mm_prefetch(reinterpret_cast<const char*>(to + 16), _MM_HINT_T0);
        }
        MC_UNROLL
        for (int b = 0; b < COLUMNS; ++b) total[a][b] = _mm512_setzero_ps();
    }
    i64 t = 0;
    for (int segment = 0; segment < s.count; ++segment) {
        typename P::Sum sum[kPairTile][COLUMNS];
        MC_UNROLL
        for (int a = 0; a < kPairTile; ++a) {
            MC_UNROLL
            for (int b = 0; b < COLUMNS; ++b) sum[a][b] = P::none();
        }
        for (; t < s.stop[segment]; ++t) {
            __m512i right[COLUMNS];
            MC_UNROLL
            for (int b = 0; b < COLUMNS; ++b) right[b] = _mm512_load_si512(w.pairs[t] + 16 * b);
            MC_UNROLL
            for (int a = 0; a < kPairTile; ++a) {
                const __m512i left = _mm512_set1_epi32(static_cast<i32>(x.pairs[a][t]));
                MC_UNROLL
                for (int b = 0; b < COLUMNS; ++b) sum[a][b] = P::dot(sum[a][b], left, right[b]);
            }
        }
        MC_UNROLL
        for (int b = 0; b < COLUMNS; ++b) {
            const __m512 scale = P::kScaled ? _mm512_load_ps(w.scales[segment] + 16 * b) : _mm512_set1_ps(1.0F);
            MC_UNROLL
            for (int a = 0; a < kPairTile; ++a) total[a][b] = _mm512_fmadd_ps(P::real(sum[a][b]), scale, total[a][b]);
        }
    }
    MC_UNROLL
    for (int a = 0; a < kPairTile; ++a) {
        const __m512 scale = _mm512_set1_ps(P::kScaled ? x.scale[a] : 1.0F);
        MC_UNROLL
        for (int b = 0; b < COLUMNS; ++b) {
            const __m512 before = out.first ? _mm512_setzero_ps() : _mm512_load_ps(out.c + a * kPairRows + 16 * b);
            total[a][b] = _mm512_fmadd_ps(total[a][b], scale, before);
        }
    }
    for (int segment = 0; OFFSETS && segment < s.count; ++segment) {
        MC_UNROLL
        for (int b = 0; b < COLUMNS; ++b) {
            const __m512 offset = _mm512_load_ps(w.offsets[segment] + 16 * b);
            MC_UNROLL
            for (int a = 0; a < kPairTile; ++a) {
                total[a][b] = _mm512_fmadd_ps(_mm512_set1_ps(x.sums[segment][a]), offset, total[a][b]);
            }
        }
    }
    store_pairs<COLUMNS>(out, total);
}

template <class P, int COLUMNS>
static void choose_tile(const Segments& s, const PairTile& x, const PairPanel& w, const PairOutput& out) {
    if (P::kScaled && out.args->w.offsets != nullptr) {
        tile_pairs<P, COLUMNS, P::kScaled>(s, x, w, out);
    } else {
        tile_pairs<P, COLUMNS, false>(s, x, w, out);
    }
}

// Weight rows [r, r + rows) by `count` packed x rows; scratch: unpacked weights, then c.
template <class F>
static void multiply_pairs(const LinearArgs& args, i64 r, i64 rows, i64 first, i64 count, const PairTile* packed,
                           PairPanel* panels) {
    using P = typename PairsFor<F>::Type;
    const Matrix& m = args.w;
    const i64 depths = (m.cols + kPairDepth - 1) / kPairDepth, tiles = (count + kPairTile - 1) / kPairTile;
    float* c = reinterpret_cast<float*>(panels + kPairBlock);
    for (i64 depth = 0; depth < depths; ++depth) {
        const Segments s = find_segments(m, depth * kPairDepth);
        for (i64 i = 0; i < rows; i += kPairPanel) {
            const i64 some = rows - i < kPairPanel ? rows - i : kPairPanel;
            unpack_pairs<F>(m, r + i, some, depth * kPairDepth, s, panels + i / kPairPanel);
        }
        for (i64 j = 0; j < tiles; ++j) {
            const PairTile& x = packed[depth * tiles + j];
            const i64 row = j * kPairTile;
            for (i64 i = 0; i < rows; i += kPairPanel) {
                const PairOutput out = {&args,       c + row * kPairRows + i, depth == 0, depth + 1 == depths,
                                        first + row, count - row,             r + i,      rows - i};
                const PairPanel& w = panels[i / kPairPanel];
                if (rows - i > 16) {
                    choose_tile<P, 2>(s, x, w, out);
                } else {
                    choose_tile<P, 1>(s, x, w, out);
                }
            }
        }
    }
}

// Products of x rows [first, first + count), which are packed already, in tasks of `rows` weight rows.
template <class F>
static void multiply_shared(Pool& pool, const SharedProducts& all, i64 rows, i64 first, i64 count,
                            const PairTile* packed) {
    auto multiply = [&](i64 begin, i64 end, int worker) {
        PairPanel* scratch = static_cast<PairPanel*>(pool.scratch(worker));
        for (i64 t = begin; t < end; ++t) {
            const ProductTask task = find_task(all, rows, t);
            multiply_pairs<F>(*task.args, task.r, task.rows, first, count, packed, scratch);
        }
    };
    parallel(pool, count_tasks(all, rows), 1, multiply);
}

// x is packed once for all products.
template <class F>
static void linear_pairs(Pool& pool, const SharedProducts& all) {
    const LinearArgs& args = *all.args;
    const i64 most = ((args.n < kRowsAtOnce ? args.n : kRowsAtOnce) + kPairTile - 1) / kPairTile;
    const i64 depths = (args.w.cols + kPairDepth - 1) / kPairDepth;
    const i64 rows = rows_of_task(pool, all, kPairPanel, kPairRows);
    pool.reserve_shared(most * depths * static_cast<i64>(sizeof(PairTile)));
    pool.reserve(kPairBlock * static_cast<i64>(sizeof(PairPanel)) +
                 most * kPairTile * kPairRows * static_cast<i64>(sizeof(float)));
    PairTile* packed = static_cast<PairTile*>(pool.shared());
    for (i64 first = 0; first < args.n; first += kRowsAtOnce) {
        const i64 count = args.n - first < kRowsAtOnce ? args.n - first : kRowsAtOnce;
        const i64 tiles = (count + kPairTile - 1) / kPairTile;
        auto pack = [&](i64 begin, i64 end, int) {
            for (i64 p = begin; p < end; ++p) {
                const i64 j = p / depths, depth = p % depths;
                pack_pairs<typename PairsFor<F>::Type>(args, first + j * kPairTile, first + count,
                                                       depth * kPairDepth, packed + depth * tiles + j);
            }
        };
        parallel(pool, tiles * depths, depths, pack);
        multiply_shared<F>(pool, all, rows, first, count, packed);
    }
}
