// Matrix tiles: eight registers of 16 rows of 64 bytes, and products of two that are added to a third.
//
// Two forms of one interface: AMX, and with MC_TILES_EMULATED an imitation that runs on any AVX-512 and gives the
// same bits, so that the kernels above can be tested on machines without AMX. Products, for rows m and lanes n of
// 32 bits, t from 0 to 15:
//   dot_bf16  C[m][n] += sum over t of A[m][2t] B[t][2n] + A[m][2t + 1] B[t][2n + 1], bf16 summed in float32
//   dot_s8    C[m][n] += the same of fours of bytes, signed by signed, summed in int32
//   dot_u8    likewise, A unsigned and B signed
// A thread has tiles as long as it holds a Tiles. Included inside the namespace of the instruction set.

constexpr i64 kTileSide = 16;    // rows of a tile; lanes of 32 bits of a row
constexpr i64 kTileDepth = 32;   // bf16 values of a row: the columns that one product sums over

#if !defined(MC_TILES_EMULATED)

#define MC_METHOD __attribute__((always_inline)) inline

// What ldtilecfg reads: palette 1, and for each tile the bytes of a row and the rows.
struct alignas(64) TileShapes {
    u8 palette, start_row, reserved[14];
    u16 row_bytes[16];
    u8 rows[16];
};

// Assembly, not the compilers' intrinsics. gcc 12's _tile_loadconfig says that it reads 8 of its 64 bytes, so
// stores to the others are dropped; its _tile_loadd does not say that it reads memory at all.
class Tiles {
public:
    MC_METHOD Tiles() {
        TileShapes shapes = {};
        shapes.palette = 1;
        for (int i = 0; i < 8; ++i) {
            shapes.row_bytes[i] = 64;
            shapes.rows[i] = kTileSide;
        }
        __asm__ volatile("ldtilecfg %0" : : "m"(shapes) : "memory");
    }
    // Released, so that the system need not save eight KB each time it switches threads.
    MC_METHOD ~Tiles() { __asm__ volatile("tilerelease" : : : "memory"); }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;

    template <int T>
    MC_METHOD void zero() {
        __asm__ volatile("tilezero %%tmm%c0" : : "i"(T));
    }
    // Rows `stride` bytes apart.
    template <int T>
    MC_METHOD void load(const void* from, i64 stride) {
        __asm__ volatile("tileloadd (%1,%2,1), %%tmm%c0" : : "i"(T), "r"(from), "r"(stride) : "memory");
    }
    template <int T>
    MC_METHOD void store(void* to, i64 stride) {
        __asm__ volatile("tilestored %%tmm%c0, (%1,%2,1)" : : "i"(T), "r"(to), "r"(stride) : "memory");
    }
    template <int C, int A, int B>
    MC_METHOD void dot_bf16() {
        __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
    }
    template <int C, int A, int B>
    MC_METHOD void dot_s8() {
        __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
    }
    template <int C, int A, int B>
    MC_METHOD void dot_u8() {
        __asm__ volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
    }
};

#else

struct alignas(64) EmulatedTile {
    u32 words[kTileSide][kTileSide];
};

// Even and odd columns have a sum each, of fused products in order, which starts at 0; both are added, then C.
// The caller has set the rounding. Not inlined: the compiler must not move arithmetic past that.
__attribute__((noinline)) static void emulate_bf16(EmulatedTile& c, const EmulatedTile& a, const EmulatedTile& b) {
    constexpr int kAtOnce = 4;
    const __m512i high = _mm512_set1_epi32(-65536);
    const auto even = [](__m512i words) { return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16)); };
    const auto odd = [&](__m512i words) { return _mm512_castsi512_ps(_mm512_and_si512(words, high)); };
    for (int m = 0; m < kTileSide; m += kAtOnce) {
        __m512 sums[kAtOnce][2];
        for (int i = 0; i < kAtOnce; ++i) sums[i][0] = sums[i][1] = _mm512_setzero_ps();
        for (int t = 0; t < kTileSide; ++t) {
            const __m512i right = _mm512_load_si512(b.words[t]);
            MC_UNROLL
            for (int i = 0; i < kAtOnce; ++i) {
                const __m512i left = _mm512_set1_epi32(static_cast<i32>(a.words[m + i][t]));
                sums[i][0] = _mm512_fmadd_ps(even(left), even(right), sums[i][0]);
                sums[i][1] = _mm512_fmadd_ps(odd(left), odd(right), sums[i][1]);
            }
        }
        for (int i = 0; i < kAtOnce; ++i) {
            const __m512 sum = _mm512_add_ps(sums[i][0], sums[i][1]);
            float* to = reinterpret_cast<float*>(c.words[m + i]);
            _mm512_store_ps(to, _mm512_add_ps(_mm512_load_ps(to), sum));
        }
    }
}

MC_INLINE i32 byte_of(u32 word, int index, bool is_signed) {
    const u32 byte = word >> (8 * index) & 0xff;
    return is_signed && byte > 127 ? static_cast<i32>(byte) - 256 : static_cast<i32>(byte);
}

static void emulate_bytes(EmulatedTile& c, const EmulatedTile& a, const EmulatedTile& b, bool a_signed) {
    for (int m = 0; m < kTileSide; ++m) {
        for (int n = 0; n < kTileSide; ++n) {
            i32 sum = 0;  // of 64 products at most: no overflow
            for (int t = 0; t < kTileSide; ++t) {
                for (int i = 0; i < 4; ++i) {
                    sum += byte_of(a.words[m][t], i, a_signed) * byte_of(b.words[t][n], i, true);
                }
            }
            c.words[m][n] += static_cast<u32>(sum);
        }
    }
}

class Tiles {
public:
    Tiles() = default;
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;

    template <int T>
    void zero() {
        memset(tiles_[T].words, 0, sizeof tiles_[T].words);
    }
    template <int T>
    void load(const void* from, i64 stride) {
        for (i64 i = 0; i < kTileSide; ++i) memcpy(tiles_[T].words[i], static_cast<const u8*>(from) + i * stride, 64);
    }
    template <int T>
    void store(void* to, i64 stride) {
        for (i64 i = 0; i < kTileSide; ++i) memcpy(static_cast<u8*>(to) + i * stride, tiles_[T].words[i], 64);
    }
    template <int C, int A, int B>
    void dot_bf16() {
        const unsigned before = _mm_getcsr();
        _mm_setcsr(0x9fc0);  // to nearest, no exceptions, denormal numbers read and written as 0
        __asm__ volatile("" : : : "memory");
        emulate_bf16(tiles_[C], tiles_[A], tiles_[B]);
        __asm__ volatile("" : : : "memory");
        _mm_setcsr(before);
    }
    template <int C, int A, int B>
    void dot_s8() {
        emulate_bytes(tiles_[C], tiles_[A], tiles_[B], true);
    }
    template <int C, int A, int B>
    void dot_u8() {
        emulate_bytes(tiles_[C], tiles_[A], tiles_[B], false);
    }

private:
    EmulatedTile tiles_[8];
};

#endif

// The self-check's products (core/isa.cpp): c (3, 1024 bytes) by each dot of a and b, twice, summed.
static void probe_tiles(const void* a, const void* b, void* c) {
    Tiles t;
    t.load<4>(a, 64);
    t.load<6>(b, 64);
    t.zero<0>();
    t.zero<1>();
    t.zero<2>();
    for (int i = 0; i < 2; ++i) {
        t.dot_bf16<0, 4, 6>();
        t.dot_s8<1, 4, 6>();
        t.dot_u8<2, 4, 6>();
    }
    t.store<0>(c, 64);
    t.store<1>(static_cast<u8*>(c) + 1024, 64);
    t.store<2>(static_cast<u8*>(c) + 2048, 64);
}
