// y = x W^T for few rows of x and grouped weights, by products of small integers.
//
// Each unit of x (the weights in 16 bytes of codes) becomes 16-bit integers q with a scale. Codes become 16-bit
// integers in registers, the even bytes apart from the odd ones, which costs a shift and a mask, and are multiplied
// in pairs; or, with MC_HAS_BYTE_DOT, they stay bytes and meet the two bytes of q, in fours. Products
// are summed in 32 bits, so all but x's rounding, to 1/65024 of the unit's largest value, is exact until a
// unit's sum is scaled. Groups must be units or whole vectors of codes. A method for linear/few.hpp. Included inside the
// namespace of the instruction set, with MC_HAS_WORDS only: simd files then have vectors Words of 2 W int16 and Ints of W int32.

constexpr i64 kWordUnits = W / 4;  // 16-byte units of codes in a vector

// A vector of codes has kFields vectors of integers of x to meet. As 16-bit integers (the even bytes' first),
// they each meet codes of their own; as bytes, with MC_HAS_BYTE_DOT, upper halves of x come first, then
// lower ones, and meet the same codes. Codes exceed weights by kBias.
#if defined(MC_HAS_BYTE_DOT)
struct Sums {
    Ints high, low;
};
MC_INLINE Sums start_sums(Ints ints) { return {no_ints(), ints}; }
MC_INLINE void add_field(Sums& sums, bool high, Words w, Words q) {
    Ints& half = high ? sums.high : sums.low;
    half = dot_bytes(half, w, q);
}
MC_INLINE Ints whole(Sums sums) { return join_halves(sums.high, sums.low); }
MC_INLINE void store_fields(u8* first, u8* second, const Ints* q) { store_halves(first, second, q); }
MC_INLINE Words all_fields(int x) { return all_bytes(x); }
#else
using Sums = Ints;
MC_INLINE Sums start_sums(Ints ints) { return ints; }
MC_INLINE void add_field(Sums& sums, bool, Words w, Words q) { sums = dot(sums, w, q); }
MC_INLINE Ints whole(Sums sums) { return sums; }
MC_INLINE void store_fields(u8* first, u8* second, const Ints* q) { store_even_odd(first, second, q); }
MC_INLINE Words all_fields(int x) { return all_words(x); }
#endif

template <class F>
struct WordFields;

template <>
struct WordFields<FormatInt8> {
    static constexpr int kFields = 2;
    static constexpr int kBias = 0;
    template <int FIELD>
    static Words get(Words codes) {
#if defined(MC_HAS_BYTE_DOT)
        return codes;
#else
        return FIELD == 0 ? low_bytes(codes) : high_bytes(codes);
#endif
    }
};

template <int BITS>
struct UnsignedFields {
    static constexpr int kFields = 16 / BITS;
    template <int FIELD>
    static Words get(Words codes) {
#if defined(MC_HAS_BYTE_DOT)
        return byte_field<FIELD % (8 / BITS) * BITS, BITS>(codes);
#else
        return bit_field<FIELD * BITS, BITS>(codes);
#endif
    }
};

template <>
struct WordFields<FormatInt4> : UnsignedFields<4> {
    static constexpr int kBias = 8;
};

template <>
struct WordFields<FormatTernary> : UnsignedFields<2> {
    static constexpr int kBias = 1;
};

// x in blocks, each to meet one or several vectors of codes: for each vector and field one of q, then
// -bias times the sums of q that share a lane, then the scale of each lane.
template <class F>
struct WordLayout {
    static constexpr int kFields = WordFields<F>::kFields;
    static constexpr i64 kVector = 4 * W;              // bytes
    static constexpr i64 kUnit = 8 * kFields;          // weights
    static constexpr i64 kChunk = kWordUnits * kUnit;  // weights in a vector of codes
    // Of codes in a block, where groups are that long: 128 weights share a scale of x.
    static constexpr int kMostVectors = kChunk < 128 ? static_cast<int>(128 / kChunk) : 1;

    int vectors;  // of codes in a block: 1 or kMostVectors
    bool units;   // each unit of a vector is a group: its scales are its own
    i64 blocks;
    i64 block_bytes;

    explicit WordLayout(const Matrix& m) {
        units = m.group == kUnit;
        vectors = m.group % (kMostVectors * kChunk) == 0 ? kMostVectors : 1;
        blocks = (m.cols + vectors * kChunk - 1) / (vectors * kChunk);
        block_bytes = (vectors * kFields + 2) * kVector;
    }
    i64 shift() const { return block_bytes - 2 * kVector; }
    i64 scale() const { return block_bytes - kVector; }
};

// One unit of x to its place in the fields of a vector; returns the sum of q.
template <class F>
MC_INLINE float quantise_words(const float* x, float inverse, u8* to) {
    using L = WordLayout<F>;
    constexpr i64 kParts = L::kFields / 2;
    return quantise_x(x, L::kUnit, inverse, [to](i64 k, const Ints* q) {
        store_fields(to + k / 16 * L::kVector, to + (kParts + k / 16) * L::kVector, q);
    });
}

// A row of x to blocks, and with offsets its sums over groups.
template <class F>
static void quantise_words_row(const Matrix& m, const float* x, u8* blocks, float* sums) {
    using L = WordLayout<F>;
    const L layout(m);
    // int4 offsets are those of codes 0 to 15; the implied one goes into the sums.
    const bool raw = m.kind == Kind::int4 && m.offsets != nullptr;
    const Words bias = all_fields(raw ? 0 : -WordFields<F>::kBias);
    const i64 block_units = layout.vectors * kWordUnits, scope = layout.units ? 1 : block_units;
    const i64 units = m.cols / L::kUnit, per_group = m.group / L::kUnit;
    memset(blocks + (layout.blocks - 1) * layout.block_bytes, 0, static_cast<size_t>(layout.block_bytes));
    for (i64 g = 0; sums != nullptr && g < units / per_group; ++g) sums[g] = 0.0F;
    for (i64 u = 0; u < units; u += scope) {
        u8* block = blocks + u / block_units * layout.block_bytes;
        const float scale = int16_scale(x + u * L::kUnit, scope * L::kUnit), inverse = inverse_scale(scale);
        float sum = 0.0F;
        for (i64 i = u; i < u + scope; ++i) {
            const i64 vector = i % block_units / kWordUnits, lane = i % kWordUnits;
            u8* to = block + vector * L::kFields * L::kVector + lane * 16;
            sum += quantise_words<F>(x + i * L::kUnit, inverse, to);
            for (int j = 0; j < 4; ++j) memcpy(block + layout.scale() + lane * 16 + j * 4, &scale, sizeof scale);
        }
        if (sums != nullptr) sums[u / per_group] += scale * sum;
    }
    for (i64 b = 0; b < layout.blocks; ++b) {
        u8* block = blocks + b * layout.block_bytes;
        Sums sums_of_q = start_sums(no_ints());
        for (i64 i = 0; i * L::kVector < layout.shift(); ++i) {
            add_field(sums_of_q, i % L::kFields < L::kFields / 2, bias, load_words(block + i * L::kVector));
        }
        store_ints(block + layout.shift(), whole(sums_of_q));
    }
}

template <class F, int FIELD, int ROWS, int NX>
MC_INLINE void dot_field(const Words* codes, const u8* x, i64 pitch, Sums (*sum)[NX]) {
    Words w[ROWS];
    MC_UNROLL
    for (int i = 0; i < ROWS; ++i) w[i] = WordFields<F>::template get<FIELD>(codes[i]);
    MC_UNROLL
    for (int j = 0; j < NX; ++j) {
        const Words q = load_words(x + j * pitch + FIELD * WordLayout<F>::kVector);
        MC_UNROLL
        for (int i = 0; i < ROWS; ++i) add_field(sum[i][j], FIELD < WordLayout<F>::kFields / 2, w[i], q);
    }
    if constexpr (FIELD + 1 < WordLayout<F>::kFields) dot_field<F, FIELD + 1, ROWS, NX>(codes, x, pitch, sum);
}

// Adds the products of a block of x in NX rows with the codes, from byte `at` on, of ROWS weight rows. HALF: the
// last block of a row has one unit.
template <class F, int ROWS, int NX, int VECTORS, bool HALF>
MC_INLINE void dot_words_block(const WordLayout<F>& layout, const u8* codes, i64 stride, const u8* x, i64 pitch,
                               const V* scale, V (*total)[NX]) {
    using L = WordLayout<F>;
    Sums sum[ROWS][NX];
    MC_UNROLL
    for (int j = 0; j < NX; ++j) {
        MC_UNROLL
        for (int i = 0; i < ROWS; ++i) {
            sum[i][j] = start_sums(WordFields<F>::kBias != 0 ? load_ints(x + j * pitch + layout.shift()) : no_ints());
        }
    }
    MC_UNROLL
    for (int v = 0; v < VECTORS; ++v) {
        Words w[ROWS];
        MC_UNROLL
        for (int i = 0; i < ROWS; ++i) {
            const u8* p = codes + i * stride + v * L::kVector;
            if (v * L::kVector % 64 == 0) prefetch_far(p);
            w[i] = HALF ? load_unit(p) : load_words(p);
        }
        dot_field<F, 0, ROWS, NX>(w, x + v * L::kFields * L::kVector, pitch, sum);
    }
    MC_UNROLL
    for (int j = 0; j < NX; ++j) {
        const V xs = load(reinterpret_cast<const float*>(x + j * pitch + layout.scale()));
        MC_UNROLL
        for (int i = 0; i < ROWS; ++i) {
            total[i][j] = fma(to_floats(whole(sum[i][j])), mul(scale[i], xs), total[i][j]);
        }
    }
}

// out[i][j] = dot(weight row r + i, x row j).
template <class F, int ROWS, int NX, int VECTORS>
static void dot_words(const Matrix& m, i64 r, const FewX& x, float* scratch, float (*out)[NX]) {
    using L = WordLayout<F>;
    const u8* codes = F::row(m, r);
    const i64 stride = m.cols / L::kUnit * 16, pitch = scales_pitch(m);
    V total[ROWS][NX];
    for (int i = 0; i < ROWS; ++i) {
        for (int j = 0; j < NX; ++j) total[i][j] = zero();
        read_groups<NX>(m, r + i, x, scratch + i * pitch, total[i]);
    }
    const L layout(m);
    const i64 step = VECTORS * L::kVector;
    const i64 whole = m.cols / (VECTORS * L::kChunk);
    const i64 span = layout.units ? 1 : m.group / (VECTORS * L::kChunk);
    V scale[ROWS];
    const float* next = scratch;
    const auto scales = [&] {
        MC_UNROLL
        for (int i = 0; i < ROWS; ++i) {
            const float* p = next + i * pitch;
            scale[i] = layout.units ? unit_scales(p) : set1(*p);
        }
        next += layout.units ? kWordUnits : 1;
    };
    const u8* block = x.blocks;
    for (i64 b = 0; b < whole;) {
        scales();
        const i64 stop = b + span;
        do {
            dot_words_block<F, ROWS, NX, VECTORS, false>(layout, codes, stride, block, x.pitch, scale, total);
            codes += step;
            block += layout.block_bytes;
        } while (++b < stop);
    }
    if (whole < layout.blocks) {
        scales();
        dot_words_block<F, ROWS, NX, 1, true>(layout, codes, stride, block, x.pitch, scale, total);
    }
    for (int i = 0; i < ROWS; ++i) {
        for (int j = 0; j < NX; ++j) out[i][j] = hsum(total[i][j]);
    }
}

// Rows [r, r + ROWS) of W by x rows [first, first + NX).
template <class F, int ROWS, int NX>
static void finish_words(const LinearArgs& args, i64 r, i64 first, const FewX& x, float* scratch) {
    const FewX some = x.from(first);
    float out[ROWS][NX];
    if (WordLayout<F>(args.w).vectors == 1) {
        dot_words<F, ROWS, NX, 1>(args.w, r, some, scratch, out);
    } else {
        dot_words<F, ROWS, NX, WordLayout<F>::kMostVectors>(args.w, r, some, scratch, out);
    }
    for (int i = 0; i < ROWS; ++i) {
        for (int j = 0; j < NX; ++j) finish(args, first + j, r + i, out[i][j]);
    }
}

template <class F>
struct FewWords {
    static constexpr i64 kRows = 8;  // small enough for the first cache level with their x
    static constexpr i64 kWeightsPerTask = 131072;

    static i64 row_bytes(const Matrix& m) {
        const WordLayout<F> layout(m);
        return layout.blocks * layout.block_bytes;
    }
    static void quantise(const Matrix& m, const float* x, u8* to, float* sums) {
        quantise_words_row<F>(m, x, to, sums);
    }
    // As many weight rows at a time as registers hold sums.
    template <int NX>
    static void multiply(const LinearArgs& args, i64 r, i64 end, i64 first, const FewX& x, float* scratch) {
        constexpr int kAtOnce = NX == 1 ? 4 : NX == 2 || W == 4 ? 2 : 1;
        for (; r + kAtOnce <= end; r += kAtOnce) finish_words<F, kAtOnce, NX>(args, r, first, x, scratch);
        if constexpr (kAtOnce > 1) {
            for (; r < end; ++r) finish_words<F, 1, NX>(args, r, first, x, scratch);
        }
    }
};

template <>
struct Multiply<Method::words> {
    template <class F>
    static void run(Pool& pool, const SharedProducts& all) {
        linear_few_integers<FewWords<F>>(pool, all);
    }
};
