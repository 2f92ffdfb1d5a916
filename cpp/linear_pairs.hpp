// y = x W^T for many rows of x, by dot products of pairs of 16-bit values summed in 32 bits.
//
// Grouped weights: their codes are exact as int16, x becomes int16 with a scale for each row and depth block,
// and sums are exact until a group's scale multiplies them (vpdpwssd, of VNNI). bf16 and f16 weights: both
// sides are rounded to bf16 and summed in float32 (vdpbf16ps). Either does twice the products of a
// float32 fma. Blocks of weight rows are unpacked and stay in the second cache level, panels of x in the
// first. Included inside the namespace of the instruction set, with MC_HAS_BF16_DOT and MC_HAS_VNNI.

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
    static Sum none() { return _mm512_setzero_si512(); }
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
constexpr int kPairTile = 6;  // weight rows at once in registers
constexpr i64 kPairRows = 16 * kPairTile;
constexpr i64 kPairPanel = 32;  // x rows side by side
constexpr int kMostSegments = 8;

// One depth block of one panel of x. pairs[t] holds columns 2t and 2t + 1 of each row; sums are those of
// a segment's integers, for offsets.
struct PairPanel {
    u32 pairs[kPairs][kPairPanel];
    float scale[kPairPanel];
    float sums[kMostSegments][kPairPanel];
};

// A block of unpacked weight rows at one depth.
struct PairRows {
    u32 pairs[kPairRows][kPairs];
    float scales[kPairRows][kMostSegments];
    float offsets[kPairRows][kMostSegments];
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

// Columns [k, end) of a row of x as int16; returns the scale, and with `sums` those of the integers of segments.
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
        if (sums != nullptr) sums[segment] = static_cast<float>(_mm512_reduce_add_epi32(sum));
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

// x rows [row, row + kPairPanel), those from `last` on taken as zeros, at depth k.
template <class P>
static void pack_pairs(const LinearArgs& args, i64 row, i64 last, i64 k, PairPanel* panel) {
    const Matrix& m = args.w;
    const Segments s = find_segments(m, k);
    const i64 end = k + kPairDepth < m.cols ? k + kPairDepth : m.cols;
    for (i64 half = 0; half < kPairPanel; half += 16) {
        alignas(64) u16 words[16][kPairDepth];
        if (row + half + 16 > last || end - k < kPairDepth) memset(words, 0, sizeof words);
        for (i64 j = half; j < half + 16; ++j) {
            float sums[kMostSegments] = {};
            float scale = 0.0F;
            if (row + j < last) {
                const float* x = args.x + (row + j) * m.cols;
                if constexpr (P::kScaled) {
                    scale = pack_int16(x, k, end, s, words[j - half], m.offsets != nullptr ? sums : nullptr);
                } else {
                    pack_bf16(x, k, end, words[j - half]);
                }
            }
            panel->scale[j] = scale;
            if (m.offsets == nullptr) continue;
            for (int segment = 0; segment < s.count; ++segment) panel->sums[segment][j] = sums[segment];
        }
        for (i64 t = 0; 2 * t < end - k; t += 16) {
            __m512i v[16];
            for (int i = 0; i < 16; ++i) v[i] = _mm512_load_si512(words[i] + 2 * t);
            transpose16(v);
            for (int i = 0; i < 16; ++i) _mm512_store_si512(panel->pairs[t + i] + half, v[i]);
        }
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

// Weight rows [r, r + rows) at depth k, and zeros up to a whole tile.
template <class F>
static void unpack_pairs(const Matrix& m, i64 r, i64 rows, i64 k, const Segments& s, PairRows* block) {
    const i64 end = k + kPairDepth < m.cols ? k + kPairDepth : m.cols;
    const i64 groups = F::GROUPED ? m.cols / m.group : 0;
    for (i64 i = 0; i < rows; ++i) {
        unpack_words<F>(m, r + i, k, end, reinterpret_cast<u16*>(block->pairs[i]));
        for (int g = 0; F::GROUPED && g < s.count; ++g) {
            const i64 at = (r + i) * groups + s.group[g];
            block->scales[i][g] = float_at(m.scales, m.half_scales, at);
            if (m.offsets != nullptr) block->offsets[i][g] = float_at(m.offsets, m.half_offsets, at);
        }
    }
    for (i64 i = rows; i % kPairTile != 0; ++i) {
        memset(block->pairs[i], 0, sizeof block->pairs[i]);
        memset(block->scales[i], 0, sizeof block->scales[i]);
        memset(block->offsets[i], 0, sizeof block->offsets[i]);
    }
}

// kPairTile weight rows from row i by COLUMNS vectors of x rows, added to c unless it is the first depth.
template <class P, int COLUMNS, bool OFFSETS>
static void tile_pairs(const Segments& s, const PairRows& w, i64 i, const PairPanel& x, float* c, i64 ldc,
                       bool accumulate) {
    __m512 total[kPairTile][COLUMNS];
    MC_UNROLL
    for (int a = 0; a < kPairTile; ++a) {
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
            for (int b = 0; b < COLUMNS; ++b) right[b] = _mm512_load_si512(x.pairs[t] + 16 * b);
            MC_UNROLL
            for (int a = 0; a < kPairTile; ++a) {
                const __m512i left = _mm512_set1_epi32(static_cast<i32>(w.pairs[i + a][t]));
                MC_UNROLL
                for (int b = 0; b < COLUMNS; ++b) sum[a][b] = P::dot(sum[a][b], left, right[b]);
            }
        }
        MC_UNROLL
        for (int a = 0; a < kPairTile; ++a) {
            const __m512 scale = _mm512_set1_ps(P::kScaled ? w.scales[i + a][segment] : 1.0F);
            MC_UNROLL
            for (int b = 0; b < COLUMNS; ++b) {
                total[a][b] = _mm512_fmadd_ps(P::real(sum[a][b]), scale, total[a][b]);
            }
        }
        if constexpr (OFFSETS) {
            MC_UNROLL
            for (int a = 0; a < kPairTile; ++a) {
                const __m512 offset = _mm512_set1_ps(w.offsets[i + a][segment]);
                MC_UNROLL
                for (int b = 0; b < COLUMNS; ++b) {
                    total[a][b] = _mm512_fmadd_ps(_mm512_load_ps(x.sums[segment] + 16 * b), offset, total[a][b]);
                }
            }
        }
    }
    MC_UNROLL
    for (int a = 0; a < kPairTile; ++a) {
        MC_UNROLL
        for (int b = 0; b < COLUMNS; ++b) {
            float* to = c + a * ldc + 16 * b;
            const __m512 scale = P::kScaled ? _mm512_load_ps(x.scale + 16 * b) : _mm512_set1_ps(1.0F);
            const __m512 before = accumulate ? _mm512_load_ps(to) : _mm512_setzero_ps();
            _mm512_store_ps(to, _mm512_fmadd_ps(total[a][b], scale, before));
        }
    }
}

// y of weight rows [r, r + rows) from c, whose row i and column j belong to y row first + j, column r + i.
static void finish_pairs(const LinearArgs& args, i64 r, i64 rows, i64 first, i64 count, const float* c, i64 ldc) {
    for (i64 i = 0; i < rows; i += 16) {
        const __mmask16 mask = lanes(rows - i < 16 ? static_cast<int>(rows - i) : 16);
        const __m512 bias = args.bias != nullptr ? _mm512_maskz_loadu_ps(mask, args.bias + r + i) : zero().v;
        for (i64 j = 0; j < count; j += 16) {
            __m512i v[16];
            for (int a = 0; a < 16; ++a) v[a] = _mm512_load_si512(c + (i + a) * ldc + j);
            transpose16(v);
            for (i64 a = 0; a < 16 && j + a < count; ++a) {
                float* y = args.y + (first + j + a) * args.w.rows + r + i;
                __m512 value = _mm512_add_ps(_mm512_castsi512_ps(v[a]), bias);
                if (args.add) {
                    value = _mm512_fmadd_ps(_mm512_set1_ps(args.scale), value, _mm512_maskz_loadu_ps(mask, y));
                }
                _mm512_mask_storeu_ps(y, mask, value);
            }
        }
    }
}

// Weight rows [r, r + rows) by `count` packed x rows; scratch: c, then the unpacked weights.
template <class F, bool OFFSETS>
static void multiply_pairs(const LinearArgs& args, i64 r, i64 rows, i64 first, i64 count,
                           const PairPanel* panels, float* c) {
    using P = typename PairsFor<F>::Type;
    const Matrix& m = args.w;
    const i64 depths = (m.cols + kPairDepth - 1) / kPairDepth;
    const i64 ldc = (count + kPairPanel - 1) / kPairPanel * kPairPanel + 16;
    PairRows* block = reinterpret_cast<PairRows*>(c + kPairRows * ldc);
    for (i64 depth = 0; depth < depths; ++depth) {
        const Segments s = find_segments(m, depth * kPairDepth);
        unpack_pairs<F>(m, r, rows, depth * kPairDepth, s, block);
        for (i64 j = 0; j < count; j += kPairPanel) {
            const PairPanel& x = panels[j / kPairPanel * depths + depth];
            for (i64 i = 0; i < rows; i += kPairTile) {
                float* to = c + i * ldc + j;
                if (count - j > 16) {
                    tile_pairs<P, 2, OFFSETS>(s, *block, i, x, to, ldc, depth > 0);
                } else {
                    tile_pairs<P, 1, OFFSETS>(s, *block, i, x, to, ldc, depth > 0);
                }
            }
        }
    }
    finish_pairs(args, r, rows, first, count, c, ldc);
}

// Products of x rows [first, first + count), which are packed already, in tasks of `rows` weight rows.
template <class F>
static void multiply_shared(Pool& pool, const SharedProducts& all, i64 rows, i64 first, i64 count,
                            const PairPanel* packed) {
    i64 tasks = 0;
    for (i64 i = 0; i < all.count; ++i) tasks += (all.args[i].w.rows + rows - 1) / rows;
    auto multiply = [&](i64 begin, i64 end, int worker) {
        float* scratch = static_cast<float*>(pool.scratch(worker));
        for (i64 t = begin; t < end; ++t) {
            const LinearArgs* args = all.args;
            i64 task = t;
            for (i64 own; task >= (own = (args->w.rows + rows - 1) / rows); ++args) task -= own;
            const i64 r = task * rows, left = args->w.rows - r;
            const auto multiply_rows = args->w.offsets != nullptr ? multiply_pairs<F, true> : multiply_pairs<F, false>;
            multiply_rows(*args, r, left < rows ? left : rows, first, count, packed, scratch);
        }
    };
    parallel(pool, tasks, 1, multiply);
}

// x is packed once for all products.
template <class F>
static void linear_pairs(Pool& pool, const SharedProducts& all) {
    const LinearArgs& args = *all.args;
    const Matrix& m = args.w;
    const i64 most = args.n < kRowsAtOnce ? args.n : kRowsAtOnce;
    const i64 panels = (most + kPairPanel - 1) / kPairPanel;
    const i64 depths = (m.cols + kPairDepth - 1) / kPairDepth;
    i64 total = 0;
    for (i64 i = 0; i < all.count; ++i) total += all.args[i].w.rows;
    // Smaller blocks where there are too few rows of W for every thread to get some.
    const i64 share = total / (8 * pool.threads()) / kPairTile * kPairTile;
    const i64 rows = share < kPairTile ? kPairTile : share < kPairRows ? share : kPairRows;
    pool.reserve_shared(panels * depths * static_cast<i64>(sizeof(PairPanel)));
    pool.reserve(kPairRows * (panels * kPairPanel + 16) * static_cast<i64>(sizeof(float)) +
                 static_cast<i64>(sizeof(PairRows)));
    PairPanel* packed = static_cast<PairPanel*>(pool.shared());
    for (i64 first = 0; first < args.n; first += kRowsAtOnce) {
        const i64 count = args.n - first < kRowsAtOnce ? args.n - first : kRowsAtOnce;
        auto pack = [&](i64 begin, i64 end, int) {
            for (i64 p = begin; p < end; ++p) {
                pack_pairs<typename PairsFor<F>::Type>(args, first + p / depths * kPairPanel, first + count,
                                                       p % depths * kPairDepth, packed + p);
            }
        };
        parallel(pool, (count + kPairPanel - 1) / kPairPanel * depths, 1, pack);
        multiply_shared<F>(pool, all, rows, first, count, packed);
    }
}
