// y = x W^T for grouped weights in rows on ARM, by products of small integers: for few rows of x, and where there are no
// dot products of bytes for any number.
//
// x becomes 16-bit integers (linear/quantise.hpp), as two signed bytes with MC_HAS_BYTE_DOT; codes of kFourRows weight rows
// are made signed bytes in registers, 16 columns at a time. Lanes are columns until a piece ends: its sums are whole numbers, so
// that adding their lanes is exact, and four rows then share a vector. Included inside the namespace of the instruction
// set, with MC_HAS_WORDS only.

constexpr int kMostWordX = 4;  // x rows at once

// A block of a row of x: of each 16 columns the upper bytes, then the lower ones, or all as words.
struct alignas(64) WordBlock {
    u8 values[2 * kBlockDepth];
    float scale;
    float sums[kMostSegments];
};

template <class F>
constexpr int kCodeParts = static_cast<int>(8 / kKinds[static_cast<int>(F::KIND)].bits);

// What codes exceed weights by.
template <class F>
MC_INLINE int8x16_t code_bias(const Matrix& m) {
    constexpr int kBias = kCodeParts<F> == 1 ? 0 : kCodeParts<F> == 2 ? 8 : 1;
    return vdupq_n_s8(m.offsets != nullptr ? 0 : kBias);
}

// 16 codes, number `part` of each byte, without their bias.
template <class F>
MC_INLINE int8x16_t sixteen_codes(uint8x16_t bytes, int part, int8x16_t bias) {
    constexpr int kBits = 8 / kCodeParts<F>;
    if (kBits == 8) return vreinterpretq_s8_u8(bytes);
    const uint8x16_t code = vshlq_u8(bytes, vdupq_n_s8(static_cast<i8>(-kBits * part)));
    return vsubq_s8(vreinterpretq_s8_u8(vandq_u8(code, vdupq_n_u8((1 << kBits) - 1))), bias);
}

#if defined(MC_HAS_BYTE_DOT)
struct WordSums {
    Ints high = no_ints(), low = no_ints();

    void add(int8x16_t codes, const u8* x) {
        const Words w = {vreinterpretq_s16_s8(codes)};
        high = dot_bytes(high, w, load_words(x));
        low = dot_bytes(low, w, load_words(x + 16));
    }
    int32x4_t whole() const { return join_halves(high, low).v; }
};
MC_INLINE void store_x_words(u8* to, const Ints* q) { store_halves(to, to + 16, q); }
#else
struct WordSums {
    Ints sum = no_ints();

    void add(int8x16_t codes, const u8* x) {
        sum = dot(sum, {vmovl_s8(vget_low_s8(codes))}, load_words(x));
        sum = dot(sum, {vmovl_s8(vget_high_s8(codes))}, load_words(x + 16));
    }
    int32x4_t whole() const { return sum.v; }
};
MC_INLINE void store_x_words(u8* to, const Ints* q) {
    const int16x8x2_t words = narrow(q);
    vst1q_s16(reinterpret_cast<int16_t*>(to), words.val[0]);
    vst1q_s16(reinterpret_cast<int16_t*>(to) + 8, words.val[1]);
}
#endif

// Block number b of a row of x.
MC_INLINE void pack_word_block(const Matrix& m, const float* x, i64 b, const Segments& s, WordBlock* to) {
    const i64 k = b * kBlockDepth;
    to->scale = quantise_depth(x, k, depth_end(m, k), s, to->sums, [to](i64 at, const Ints* q) {
        store_x_words(to->values + 2 * at, q);
    });
}

// Scales or offsets of kFourRows weight rows.
MC_INLINE V four_floats(const GroupFloats& floats, const i64* first, i64 group) {
    float four[kFourRows];
    for (int i = 0; i < kFourRows; ++i) four[i] = float_at(floats, first[i] + group);
    return load(four);
}

// kFourRows weight rows from r on, those beyond the last one in vain, by NX rows of x from `row` on, whose blocks are at x.
template <class F, int NX>
static void multiply_words(const LinearArgs& args, i64 r, i64 row, const WordBlock* x, const Segments* segments) {
    const Matrix& m = args.w;
    const i64 groups = m.cols / m.group, blocks = (m.cols + kBlockDepth - 1) / kBlockDepth;
    const int8x16_t bias = code_bias<F>(m);
    const u8* rows[kFourRows];
    i64 first[kFourRows];
    for (int i = 0; i < kFourRows; ++i) {
        const i64 from = r + i < m.rows ? r + i : m.rows - 1;
        rows[i] = F::row(m, from);
        first[i] = from * groups;
    }
    V total[NX];
    for (int j = 0; j < NX; ++j) total[j] = zero();
    for (i64 b = 0; b < blocks; ++b, ++x) {
        const Segments& s = segments[b];
        V part[NX];
        for (int j = 0; j < NX; ++j) part[j] = zero();
        i64 at = 0;
        for (int segment = 0; segment < s.count; ++segment) {
            WordSums sum[kFourRows][NX];
            for (; at < s.stop[segment]; at += 16) {
                const i64 sixteen = (b * kBlockDepth + at) / 16;
                MC_UNROLL
                for (int i = 0; i < kFourRows; ++i) {
                    const uint8x16_t bytes = vld1q_u8(rows[i] + sixteen / kCodeParts<F> * 16);
                    const int8x16_t codes = sixteen_codes<F>(bytes, static_cast<int>(sixteen % kCodeParts<F>), bias);
                    MC_UNROLL
                    for (int j = 0; j < NX; ++j) sum[i][j].add(codes, x[j * blocks].values + 2 * at);
                }
            }
            const V scale = four_floats(scales_of(m), first, s.group[segment]);
            const V offset = m.offsets != nullptr ? four_floats(offsets_of(m), first, s.group[segment]) : zero();
            MC_UNROLL
            for (int j = 0; j < NX; ++j) {
                const int32x4_t left = vpaddq_s32(sum[0][j].whole(), sum[1][j].whole());
                const int32x4_t right = vpaddq_s32(sum[2][j].whole(), sum[3][j].whole());
                part[j] = fma(to_floats({vpaddq_s32(left, right)}), scale, part[j]);
                if (m.offsets != nullptr) part[j] = fma(set1(x[j * blocks].sums[segment]), offset, part[j]);
            }
        }
        for (int j = 0; j < NX; ++j) total[j] = fma(part[j], set1(x[j * blocks].scale), total[j]);
    }
    const int n = m.rows - r < kFourRows ? static_cast<int>(m.rows - r) : kFourRows;
    for (int j = 0; j < NX; ++j) {
        float* y = args.y + (row + j) * m.rows + r;
        V value = total[j];
        if (args.bias != nullptr) value = add(value, loadn(args.bias + r, n));
        if (args.add) value = fma(set1(args.scale), value, loadn(y, n));
        storen(y, value, n);
    }
}

// The weight rows of a task by all rows of x: those after the first find the weights in a near cache.
template <class F>
static void multiply_words_task(const ProductTask& task, const WordBlock* x, const Segments* segments) {
    const LinearArgs& args = *task.args;
    const i64 blocks = (args.w.cols + kBlockDepth - 1) / kBlockDepth;
    for (i64 r = task.r; r < task.r + task.rows; r += kFourRows) {
        i64 j = 0;
        for (; args.n - j >= kMostWordX; j += kMostWordX) multiply_words<F, kMostWordX>(args, r, j, x + j * blocks, segments);
        for (; args.n - j >= 2; j += 2) multiply_words<F, 2>(args, r, j, x + j * blocks, segments);
        if (args.n - j == 1) multiply_words<F, 1>(args, r, j, x + j * blocks, segments);
    }
}

// x is quantised once for all products.
template <>
struct Multiply<Method::words> {
    template <class F>
    static void run(Pool& pool, const SharedProducts& all) {
        constexpr i64 kRows = 16, kWeightsPerTask = 131072;
        const LinearArgs& args = *all.args;
        const Matrix& m = args.w;
        const i64 blocks = (m.cols + kBlockDepth - 1) / kBlockDepth;
        pool.reserve_shared(blocks * (args.n * static_cast<i64>(sizeof(WordBlock)) + static_cast<i64>(sizeof(Segments))));
        WordBlock* x = static_cast<WordBlock*>(pool.shared());
        Segments* segments = reinterpret_cast<Segments*>(x + args.n * blocks);
        auto cut = [&](i64, i64, int) {
            for (i64 b = 0; b < blocks; ++b) segments[b] = find_segments(m, b * kBlockDepth);
        };
        parallel(pool, 1, 1, cut);
        auto pack = [&](i64 begin, i64 end, int) {
            for (i64 t = begin; t < end; ++t) pack_word_block(m, args.x + t / blocks * m.cols, t % blocks, segments[t % blocks], x + t);
        };
        parallel(pool, args.n * blocks, 4 * blocks, pack);
        auto multiply = [&](i64 begin, i64 end, int) {
            for (i64 t = begin; t < end; ++t) multiply_words_task<F>(find_task(all, kRows, t), x, segments);
        };
        parallel(pool, count_tasks(all, kRows), kWeightsPerTask / (kRows * args.n * m.cols) + 1, multiply);
    }
};
