// y = x W^T for few rows of x and grouped weights, by products of 16-bit integers summed in pairs.
//
// Each unit of x (the weights in 16 bytes of codes) becomes 16-bit integers q with a scale; codes become
// 16-bit integers in registers, the even bytes apart from the odd ones, which costs a shift and a mask. Products
// are summed in 32 bits, so all but x's rounding, to 1/65024 of the unit's largest value, is exact until a
// unit's sum is scaled. Included inside the namespace of the instruction set, with MC_HAS_WORDS only: simd
// files then have vectors Words of 2 W int16 and Ints of W int32 (see simd.hpp).

constexpr i64 kWordUnits = W / 4;  // 16-byte units of codes in a vector

// A vector of codes has kFields vectors of 16-bit integers in it, which exceed weights by kBias.
template <class F>
struct WordFields;

template <>
struct WordFields<FormatInt8> {
    static constexpr int kFields = 2;
    static constexpr int kBias = 0;
    template <int FIELD>
    static Words get(Words codes) {
        return FIELD == 0 ? low_bytes(codes) : high_bytes(codes);
    }
};

template <int BITS>
struct UnsignedFields {
    static constexpr int kFields = 16 / BITS;
    template <int FIELD>
    static Words get(Words codes) {
        return bit_field<FIELD * BITS, BITS>(codes);
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

// From which group size on up to 16 rows are few (measured on AVX2).
#if defined(MC_HAS_PAIRS)
constexpr i64 kLongGroup = 128;
#else
constexpr i64 kLongGroup = 64;
#endif

// Groups must be units or whole vectors of codes. Scaling sums of short groups costs what integers gain: the more
// rows, the better are kernels that unpack weights once for all.
template <class F>
static bool words_fit(const Matrix& m, i64 n) {
    if constexpr (F::GROUPED) {
        if (m.group != WordLayout<F>::kUnit && m.group % WordLayout<F>::kChunk != 0) return false;
        return n <= 8 || (n <= 16 && m.group >= kLongGroup);
    }
    return false;
}

// One unit of x to its place in the fields of a vector; returns the sum of q.
template <class F>
MC_INLINE float quantise_words(const float* x, float inverse, u8* to) {
    using L = WordLayout<F>;
    constexpr int kParts = L::kFields / 2;
    V sum = zero();
    for (int part = 0; part < kParts; ++part) {
        Ints q[16 / W];
        for (int i = 0; i < 16 / W; ++i) {
            q[i] = round_to_ints(mul(load(x + part * 16 + i * W), set1(inverse)));
            sum = add(sum, to_floats(q[i]));
        }
        // Even bytes of codes are the first half of the fields.
        store_even_odd(to + part * L::kVector, to + (kParts + part) * L::kVector, q);
    }
    return hsum(sum);
}

// A row of x to blocks, and with offsets its sums over groups.
template <class F>
static void quantise_words_row(const Matrix& m, const float* x, u8* blocks, float* sums) {
    using L = WordLayout<F>;
    const L layout(m);
    // int4 offsets are those of codes 0 to 15; the implied one goes into the sums.
    const bool raw = m.kind == Kind::int4 && m.offsets != nullptr;
    const Words bias = all_words(raw ? 0 : -WordFields<F>::kBias);
    const i64 block_units = layout.vectors * kWordUnits, scope = layout.units ? 1 : block_units;
    const i64 units = m.cols / L::kUnit, per_group = m.group / L::kUnit;
    memset(blocks + (layout.blocks - 1) * layout.block_bytes, 0, static_cast<size_t>(layout.block_bytes));
    for (i64 g = 0; sums != nullptr && g < units / per_group; ++g) sums[g] = 0.0F;
    for (i64 u = 0; u < units; u += scope) {
        u8* block = blocks + u / block_units * layout.block_bytes;
        float inverse = 0.0F;
        const float scale = word_scale(x + u * L::kUnit, scope * L::kUnit, &inverse);
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
        Ints sum = no_ints();
        for (i64 at = 0; at < layout.shift(); at += L::kVector) sum = dot(sum, load_words(block + at), bias);
        store_ints(block + layout.shift(), sum);
    }
}

struct WordRows {
    const u8* blocks;
    i64 pitch;  // bytes between rows of x
    const float* sums;
    i64 sums_pitch;
};

template <class F, int FIELD, int ROWS, int NX>
MC_INLINE void dot_field(const Words* codes, const u8* x, i64 pitch, Ints (*sum)[NX]) {
    Words w[ROWS];
    MC_UNROLL
    for (int i = 0; i < ROWS; ++i) w[i] = WordFields<F>::template get<FIELD>(codes[i]);
    MC_UNROLL
    for (int j = 0; j < NX; ++j) {
        const Words q = load_words(x + j * pitch + FIELD * WordLayout<F>::kVector);
        MC_UNROLL
        for (int i = 0; i < ROWS; ++i) sum[i][j] = dot(sum[i][j], w[i], q);
    }
    if constexpr (FIELD + 1 < WordLayout<F>::kFields) dot_field<F, FIELD + 1, ROWS, NX>(codes, x, pitch, sum);
}

// Adds the products of a block of x in NX rows with the codes, from byte `at` on, of ROWS weight rows. HALF: the
// last block of a row has one unit.
template <class F, int ROWS, int NX, int VECTORS, bool HALF>
MC_INLINE void dot_words_block(const WordLayout<F>& layout, const u8* codes, i64 stride, const u8* x, i64 pitch,
                               const V* scale, V (*total)[NX]) {
    using L = WordLayout<F>;
    Ints sum[ROWS][NX];
    MC_UNROLL
    for (int j = 0; j < NX; ++j) {
        MC_UNROLL
        for (int i = 0; i < ROWS; ++i) {
            sum[i][j] = WordFields<F>::kBias != 0 ? load_ints(x + j * pitch + layout.shift()) : no_ints();
        }
    }
    MC_UNROLL
    for (int v = 0; v < VECTORS; ++v) {
        Words w[ROWS];
        MC_UNROLL
        for (int i = 0; i < ROWS; ++i) {
            const u8* p = codes + i * stride + v * L::kVector;
            prefetch_far(p);
            w[i] = HALF ? load_unit(p) : load_words(p);
        }
        dot_field<F, 0, ROWS, NX>(w, x + v * L::kFields * L::kVector, pitch, sum);
    }
    MC_UNROLL
    for (int j = 0; j < NX; ++j) {
        const V xs = load(reinterpret_cast<const float*>(x + j * pitch + layout.scale()));
        MC_UNROLL
        for (int i = 0; i < ROWS; ++i) {
            total[i][j] = fma(to_floats(sum[i][j]), mul(scale[i], xs), total[i][j]);
        }
    }
}

MC_INLINE V floats_at(const void* data, bool half, i64 i, int n) {
    return half ? loadn_f16(static_cast<const u16*>(data) + i, n) : loadn(static_cast<const float*>(data) + i, n);
}

// Floats of scratch that the scales of one weight row take.
MC_INLINE i64 scales_pitch(const Matrix& m) { return (m.cols / m.group + W - 1) / W * W + W; }

// Scales of a weight row as float32 with zeros behind; the products of its offsets go to total.
template <int NX>
MC_INLINE void read_groups(const Matrix& m, i64 row, const WordRows& x, float* scales, V* total) {
    const i64 groups = m.cols / m.group;
    i64 g = 0;
    for (; g < groups; g += W) {
        const int n = groups - g < W ? static_cast<int>(groups - g) : W;
        store(scales + g, floats_at(m.scales, m.half_scales, row * groups + g, n));
        if (m.offsets == nullptr) continue;
        const V offsets = floats_at(m.offsets, m.half_offsets, row * groups + g, n);
        for (int j = 0; j < NX; ++j) total[j] = fma(offsets, loadn(x.sums + j * x.sums_pitch + g, n), total[j]);
    }
    store(scales + g, zero());
}

// out[i][j] = dot(weight row r + i, x row j).
template <class F, int ROWS, int NX, int VECTORS>
static void dot_words(const Matrix& m, i64 r, const WordRows& x, float* scratch, float (*out)[NX]) {
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
static void finish_words(const LinearArgs& args, i64 r, i64 first, const WordRows& x, float* scratch) {
    const WordRows some = {x.blocks + first * x.pitch, x.pitch, x.sums + first * x.sums_pitch, x.sums_pitch};
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

// Rows [r, end) of W by NX rows of x, as many weight rows at a time as registers hold sums.
template <class F, int NX>
static void finish_words_rows(const LinearArgs& args, i64 r, i64 end, i64 first, const WordRows& x, float* scratch) {
    constexpr int kRows = NX == 1 ? 4 : NX == 2 || W == 4 ? 2 : 1;
    for (; r + kRows <= end; r += kRows) finish_words<F, kRows, NX>(args, r, first, x, scratch);
    if constexpr (kRows > 1) {
        for (; r < end; ++r) finish_words<F, 1, NX>(args, r, first, x, scratch);
    }
}

constexpr i64 kWordBlock = 8;  // weight rows, small enough for the first cache level with their x

template <class F>
static void linear_words_rows(Pool& pool, const LinearArgs& args, const WordRows& x) {
    const Matrix& m = args.w;
    auto body = [&](i64 begin, i64 end, int worker) {
        float* scratch = static_cast<float*>(pool.scratch(worker));
        for (i64 b = begin; b < end; ++b) {
            const i64 r = b * kWordBlock, stop = r + kWordBlock < m.rows ? r + kWordBlock : m.rows;
            i64 j = 0;
            for (; j + 4 <= args.n; j += 4) finish_words_rows<F, 4>(args, r, stop, j, x, scratch);
            if (args.n - j == 3) finish_words_rows<F, 3>(args, r, stop, j, x, scratch);
            if (args.n - j == 2) finish_words_rows<F, 2>(args, r, stop, j, x, scratch);
            if (args.n - j == 1) finish_words_rows<F, 1>(args, r, stop, j, x, scratch);
        }
    };
    constexpr i64 kWeightsPerTask = 131072;
    parallel(pool, (m.rows + kWordBlock - 1) / kWordBlock, kWeightsPerTask / (kWordBlock * args.n * m.cols) + 1, body);
}

template <class F>
static void linear_words(Pool& pool, const SharedProducts& all) {
    const LinearArgs& args = *all.args;
    const Matrix& m = args.w;
    const WordLayout<F> layout(m);
    // A line more than a row takes: rows a multiple of 4096 bytes apart would fall on the same cache sets.
    const i64 pitch = layout.blocks * layout.block_bytes + 64;
    const i64 groups = m.offsets != nullptr ? m.cols / m.group : 0;
    pool.reserve_shared(args.n * (pitch + groups * static_cast<i64>(sizeof(float))));
    pool.reserve(4 * scales_pitch(m) * static_cast<i64>(sizeof(float)));
    u8* blocks = static_cast<u8*>(pool.shared());
    float* sums = reinterpret_cast<float*>(blocks + args.n * pitch);
    auto body = [&](i64 begin, i64 end, int) {
        for (i64 j = begin; j < end; ++j) {
            quantise_words_row<F>(m, args.x + j * m.cols, blocks + j * pitch,
                                  groups > 0 ? sums + j * groups : nullptr);
        }
    };
    parallel(pool, args.n, 4096 / m.cols + 1, body);
    const WordRows x = {blocks, pitch, sums, groups};
    for (i64 i = 0; i < all.count; ++i) linear_words_rows<F>(pool, all.args[i], x);
}
