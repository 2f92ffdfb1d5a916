// y = x W^T for few rows of x and grouped weights, by dot products of bytes (VNNI).
//
// Each unit of x (the weights in 16 bytes of codes) becomes 16-bit integers q = 256 hi + lo with a scale,
// hi and lo signed bytes. vpdpbusd multiplies four of them by four codes, which are unsigned bytes once
// shifted apart. 256 hi + lo is put together in 32 bits, so all but x's rounding, to 1/65024 of the
// unit's largest value, is exact until a unit's sum is scaled. Lanes of 16 bytes of codes share a scale: groups must be 1,
// 2 or 4n whole units. A method for linear/few.hpp. Included inside the namespace of the instruction set, with MC_HAS_VNNI only.

// Prefetched this far ahead, to the second level: the first has too few misses in flight to fill a core's
// share of the bandwidth (measured: 9 against 16 GB/s).
constexpr i64 kAhead = 16384;

// kParts vectors of unsigned bytes from 64 bytes of codes; kBias is what they exceed weights by.
template <class F>
struct Bytes;

template <>
struct Bytes<FormatInt8> {
    static constexpr int kParts = 1;
    static constexpr int kBias = 128;
    static void split(__m512i* w, __m512i codes) { w[0] = _mm512_xor_si512(codes, _mm512_set1_epi8(-128)); }
};

template <>
struct Bytes<FormatInt4> {
    static constexpr int kParts = 2;
    static constexpr int kBias = 8;
    static void split(__m512i* w, __m512i codes) {
        const __m512i mask = _mm512_set1_epi8(15);
        w[0] = _mm512_and_si512(codes, mask);
        w[1] = _mm512_and_si512(_mm512_srli_epi16(codes, 4), mask);
    }
};

template <>
struct Bytes<FormatTernary> {
    static constexpr int kParts = 4;
    static constexpr int kBias = 1;
    static void split(__m512i* w, __m512i codes) {
        const __m512i mask = _mm512_set1_epi8(3);
        w[0] = _mm512_and_si512(codes, mask);
        w[1] = _mm512_and_si512(_mm512_srli_epi16(codes, 2), mask);
        w[2] = _mm512_and_si512(_mm512_srli_epi16(codes, 4), mask);
        w[3] = _mm512_and_si512(_mm512_srli_epi16(codes, 6), mask);
    }
};

// x of four units, to meet 64 bytes of codes: for each part 64 bytes of hi and 64 of lo, then
// -bias times the sums of q that share an int32 lane, then the scale of each lane.
template <class F>
struct ByteLayout {
    static constexpr i64 kUnit = 16 * Bytes<F>::kParts;
    static constexpr i64 kShift = 128 * Bytes<F>::kParts;
    static constexpr i64 kScale = kShift + 64;
    static constexpr i64 kBlock = kScale + 64;

    static i64 blocks(i64 cols) { return (cols + 4 * kUnit - 1) / (4 * kUnit); }
};

// One unit of x to lane `lane` of a block; returns the sum of the unit's quantised values.
template <class F>
MC_INLINE float quantise_unit(const float* x, int bias, int lane, u8* block) {
    using L = ByteLayout<F>;
    const float scale = int16_scale(x, L::kUnit);
    __m512i sum = _mm512_setzero_si512();
    const float total = quantise_x(x, L::kUnit, inverse_scale(scale), [&](i64 k, const Ints* q) {
        u8* to = block + k * 8 + lane * 16;
        store_halves(to, to + 64, q);
        sum = _mm512_add_epi32(sum, q->v);
    });
    // Sums of four neighbours, which vpdpbusd adds up in one lane.
    __m512i four = _mm512_add_epi32(sum, _mm512_shuffle_epi32(sum, _MM_PERM_CDAB));
    four = _mm512_add_epi32(four, _mm512_shuffle_epi32(four, _MM_PERM_BADC));
    const __m512i first = _mm512_maskz_compress_epi32(0x1111, four);
    const __m128i shift = _mm_mullo_epi32(_mm512_castsi512_si128(first), _mm_set1_epi32(-bias));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(block + L::kShift) + lane, shift);
    _mm_storeu_ps(reinterpret_cast<float*>(block + L::kScale) + lane * 4, _mm_set1_ps(scale));
    return scale * total;
}

// A row of x to blocks, and with offsets its sums over groups.
template <class F>
static void quantise_row(const Matrix& m, const float* x, u8* blocks, float* sums) {
    using L = ByteLayout<F>;
    const i64 count = L::blocks(m.cols), units = m.cols / L::kUnit;
    memset(blocks + (count - 1) * L::kBlock, 0, L::kBlock);
    // int4 offsets are those of codes 0 to 15; the implied one, and that of int8's sign, go into q.
    const bool raw = m.kind == Kind::int4 && m.offsets != nullptr;
    const i64 per_group = m.group / L::kUnit;
    for (i64 u = 0; u < units; ++u) {
        const float sum = quantise_unit<F>(x + u * L::kUnit, raw ? 0 : Bytes<F>::kBias,
                                           static_cast<int>(u % 4), blocks + u / 4 * L::kBlock);
        if (sums != nullptr) sums[u / per_group] = (u % per_group == 0 ? 0.0F : sums[u / per_group]) + sum;
    }
}

// ROWS weight rows, `stride` bytes apart.
struct CodeRows {
    const u8* codes;
    i64 stride;
    i64 ahead;  // bytes to prefetch at
};

// ROWS x NX sums over 64 bytes of codes from byte `at` of each weight row on.
template <class F, int ROWS, int NX, bool WHOLE>
MC_INLINE void dot_bytes_block(const CodeRows& rows, i64 at, __mmask64 mask, const u8* x, i64 pitch,
                               const __m512* scale, V (*total)[NX]) {
    using B = Bytes<F>;
    using L = ByteLayout<F>;
    __m512i w[ROWS][B::kParts];
    MC_UNROLL
    for (int i = 0; i < ROWS; ++i) {
        const u8* p = rows.codes + i * rows.stride + at;
        _mm_prefetch(reinterpret_cast<const char*>(p) + rows.ahead, _MM_HINT_T1);
        __m512i codes = WHOLE ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi8(mask, p);
        MC_KEEP(codes);
        B::split(w[i], codes);
    }
    MC_UNROLL
    for (int j = 0; j < NX; ++j) {
        const u8* block = x + j * pitch;
        __m512i sum[ROWS];
        MC_UNROLL
        for (int part = 0; part < B::kParts; ++part) {
            const __m512i high = _mm512_load_si512(block + part * 128);
            MC_UNROLL
            for (int i = 0; i < ROWS; ++i) {
                if (part == 0) MC_ZERO(sum[i]);
                sum[i] = add_byte_products(sum[i], w[i][part], high);
            }
        }
        const __m512i shift = _mm512_load_si512(block + L::kShift);
        MC_UNROLL
        for (int i = 0; i < ROWS; ++i) sum[i] = _mm512_add_epi32(_mm512_slli_epi32(sum[i], 8), shift);
        MC_UNROLL
        for (int part = 0; part < B::kParts; ++part) {
            const __m512i low = _mm512_load_si512(block + part * 128 + 64);
            MC_UNROLL
            for (int i = 0; i < ROWS; ++i) sum[i] = add_byte_products(sum[i], w[i][part], low);
        }
        const __m512 xs = _mm512_load_ps(block + L::kScale);
        MC_UNROLL
        for (int i = 0; i < ROWS; ++i) {
            total[i][j].v =
                _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[i]), _mm512_mul_ps(scale[i], xs), total[i][j].v);
        }
    }
}

// Scales and offsets of the rows that come kRowsAhead later: streams too thin for the hardware to fetch ahead
// (measured: int4 from memory, one core, 22 to 27 GB/s with short rows and 29 to 36 with long ones).
constexpr i64 kRowsAhead = 64;

MC_INLINE void prefetch_groups(const Matrix& m, i64 row, i64 count) {
    const i64 groups = m.cols / m.group, first = (row + kRowsAhead) * groups;
    const auto fetch = [&](const void* data, i64 size) {
        const char* p = static_cast<const char*>(data) + first * size;
        for (i64 b = 0; b < count * groups * size; b += 64) _mm_prefetch(p + b, _MM_HINT_T0);
    };
    fetch(m.scales, m.half_scales ? 2 : 4);
    if (m.offsets != nullptr) fetch(m.offsets, m.half_offsets ? 2 : 4);
}

// out[i][j] = dot(weight row r + i, x row j).
template <class F, int ROWS, int NX>
static void dot_bytes(const Matrix& m, i64 r, const FewX& x, float* scratch, float (*out)[NX]) {
    using L = ByteLayout<F>;
    const i64 stride = m.cols / Bytes<F>::kParts, pitch = scales_pitch(m);
    const CodeRows rows = {F::row(m, r), stride, kAhead};
    V total[ROWS][NX];
    prefetch_groups(m, r, ROWS);
    for (int i = 0; i < ROWS; ++i) {
        for (int j = 0; j < NX; ++j) total[i][j] = zero();
        read_groups<NX>(m, r + i, x, scratch + i * pitch, total[i]);
    }
    // Which of four neighbouring scales each 16 bytes take, and blocks until the next ones.
    const i64 units = m.group / L::kUnit;
    const __m512i lane = _mm512_srli_epi32(_mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3),
                                           units == 1 ? 0 : units == 2 ? 1 : 2);
    const i64 step = units < 4 ? 4 / units : 1, span = units < 4 ? 1 : units / 4;
    const i64 whole = stride / 64;
    const auto scale_vectors = [&](__m512* scale, i64 g) {
        MC_UNROLL
        for (int i = 0; i < ROWS; ++i) {
            const __m128 four = _mm_loadu_ps(scratch + i * pitch + g);
            scale[i] = _mm512_permutevar_ps(_mm512_broadcast_f32x4(four), lane);
        }
    };
    i64 b = 0, g = 0;
    for (; b < whole; g += step) {
        __m512 scale[ROWS];
        scale_vectors(scale, g);
        const i64 stop = b + span < whole ? b + span : whole;
        do {
            const u8* block = x.blocks + b * L::kBlock;
            dot_bytes_block<F, ROWS, NX, true>(rows, b * 64, 0, block, x.pitch, scale, total);
        } while (++b < stop);
    }
    if (stride % 64 != 0) {
        __m512 scale[ROWS];
        scale_vectors(scale, g);
        const __mmask64 mask = ~0ULL >> (64 - stride % 64);
        const u8* block = x.blocks + b * L::kBlock;
        dot_bytes_block<F, ROWS, NX, false>(rows, b * 64, mask, block, x.pitch, scale, total);
    }
    for (int i = 0; i < ROWS; ++i) {
        for (int j = 0; j < NX; ++j) out[i][j] = hsum(total[i][j]);
    }
}

// Rows [r, r + ROWS) of W by x rows [first, first + NX).
template <class F, int ROWS, int NX>
static void finish_bytes(const LinearArgs& args, i64 r, i64 first, const FewX& x, float* scratch) {
    const FewX some = x.from(first);
    float out[ROWS][NX];
    dot_bytes<F, ROWS, NX>(args.w, r, some, scratch, out);
    for (int i = 0; i < ROWS; ++i) {
        for (int j = 0; j < NX; ++j) finish(args, first + j, r + i, out[i][j]);
    }
}

template <class F>
struct FewBytes {
    static constexpr i64 kRows = 4;
    static constexpr i64 kWeightsPerTask = 262144;

    static i64 row_bytes(const Matrix& m) { return ByteLayout<F>::blocks(m.cols) * ByteLayout<F>::kBlock; }
    static void quantise(const Matrix& m, const float* x, u8* to, float* sums) { quantise_row<F>(m, x, to, sums); }
    template <int NX>
    static void multiply(const LinearArgs& args, i64 r, i64 end, i64 first, const FewX& x, float* scratch) {
        if (end - r == kRows) return finish_bytes<F, kRows, NX>(args, r, first, x, scratch);
        for (; r < end; ++r) finish_bytes<F, 1, NX>(args, r, first, x, scratch);
    }
};

template <>
struct Multiply<Method::bytes> {
    template <class F>
    static void run(Pool& pool, const SharedProducts& all) {
        linear_few_integers<FewBytes<F>>(pool, all);
    }
};
