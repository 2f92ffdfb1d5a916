// Codes of 2, 3, 5 and 6 bits in rows (formats/codes.py): units of kUnit weights, first the LOW lower bits of each, in
// fields of 16 bytes as those of other kinds, then the HIGH upper ones, two bits in such fields as well, single bits in the
// order of weights. Included inside the namespace of the instruction set.

template <Kind KIND_, int LOW, int HIGH, i64 UNIT, int BIAS_>
struct PlaneFormat {
    static constexpr Kind KIND = KIND_;
    static constexpr int STEP = 16;
    static constexpr bool GROUPED = true;
    static constexpr int kLow = LOW, kHigh = HIGH;
    static constexpr int BIAS = BIAS_;  // what codes exceed weights by, without offsets
    static constexpr i64 kUnitBytes = UNIT * (LOW + HIGH) / 8;

    static const u8* row(const Matrix& m, i64 r) {
        return static_cast<const u8*>(m.codes) + r * (m.cols / UNIT * kUnitBytes);
    }
    // Codes k to k + 15 of a row, k a multiple of 16, as bytes.
    static void sixteen(u8* to, const u8* row, i64 k) {
        constexpr int kFields = 8 / LOW;
        const u8* unit = row + k / UNIT * kUnitBytes;
        const int s = static_cast<int>(k % UNIT / 16);
        const u8 *low = unit + s / kFields * 16, *high = unit + UNIT * LOW / 8;
        const int shift = s % kFields * LOW;
        for (int i = 0; i < 16; ++i) {
            int code = low[i] >> shift & ((1 << LOW) - 1);
            if (HIGH == 2) code |= (high[i] >> 2 * s & 3) << LOW;
            if (HIGH == 1) code |= (high[2 * s + i / 8] >> i % 8 & 1) << LOW;
            to[i] = static_cast<u8>(code);
        }
    }
    template <bool RAW>
    static void load(V* v, const u8* row, i64 k) {
        u8 codes[16];
        sixteen(codes, row, k);
        for (int i = 0; i < 16 / W; ++i) v[i] = load_bits<0, 255, RAW ? 0 : BIAS>(codes + i * W);
    }
};

using FormatInt6 = PlaneFormat<Kind::int6, 4, 2, 64, 32>;
using FormatInt5 = PlaneFormat<Kind::int5, 4, 1, 32, 16>;
using FormatInt3 = PlaneFormat<Kind::int3, 2, 1, 64, 4>;
using FormatInt2 = PlaneFormat<Kind::int2, 2, 0, 64, 2>;

template <class F>
constexpr bool is_planes = F::KIND == Kind::int6 || F::KIND == Kind::int5 || F::KIND == Kind::int3 || F::KIND == Kind::int2;
