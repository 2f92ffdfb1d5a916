// The float32 matrix product of one thread: C (+)= A B, register-blocked.
//
// A (m, k) with rows lda apart, B (k, n) with rows ldb apart and contiguous along n, C (m, n) with
// rows ldc apart; any sizes. Best where B's columns come in multiples of kTileColumns and k * ldb
// floats stay in the first cache levels. Included inside the namespace of the instruction set.

constexpr int kTileColumns = 2 * W;

// ROWS x (COLS vectors) of C; the last vector holds `tail` lanes where MASKED.
template <int ROWS, int COLS, bool MASKED>
MC_INLINE void tile_block(i64 k, const float* MC_RESTRICT a, i64 lda, const float* MC_RESTRICT b, i64 ldb,
                          float* MC_RESTRICT c, i64 ldc, int tail, bool accumulate) {
    V sum[ROWS][COLS];
    MC_UNROLL
    for (int i = 0; i < ROWS; ++i) {
        MC_UNROLL
        for (int j = 0; j < COLS; ++j) sum[i][j] = zero();
    }
    for (i64 t = 0; t < k; ++t) {
        V right[COLS];
        MC_UNROLL
        for (int j = 0; j < COLS; ++j) {
            const float* p = b + t * ldb + j * W;
            right[j] = MASKED && j == COLS - 1 ? loadn(p, tail) : load(p);
        }
        MC_UNROLL
        for (int i = 0; i < ROWS; ++i) {
            const V left = set1(a[i * lda + t]);
            MC_UNROLL
            for (int j = 0; j < COLS; ++j) sum[i][j] = fma(left, right[j], sum[i][j]);
        }
    }
    MC_UNROLL
    for (int i = 0; i < ROWS; ++i) {
        MC_UNROLL
        for (int j = 0; j < COLS; ++j) {
            float* p = c + i * ldc + j * W;
            if (MASKED && j == COLS - 1) {
                storen(p, accumulate ? add(loadn(p, tail), sum[i][j]) : sum[i][j], tail);
            } else {
                store(p, accumulate ? add(load(p), sum[i][j]) : sum[i][j]);
            }
        }
    }
}

// ROWS rows of C, all n columns.
template <int ROWS, int COLS>
static void tile_rows(i64 n, i64 k, const float* a, i64 lda, const float* b, i64 ldb, float* c, i64 ldc,
                      bool accumulate) {
    i64 j = 0;
    for (; j + COLS * W <= n; j += COLS * W) {
        tile_block<ROWS, COLS, false>(k, a, lda, b + j, ldb, c + j, ldc, W, accumulate);
    }
    for (; j + W <= n; j += W) {
        tile_block<ROWS, 1, false>(k, a, lda, b + j, ldb, c + j, ldc, W, accumulate);
    }
    if (j < n) {
        const int tail = static_cast<int>(n - j);
        tile_block<ROWS, 1, true>(k, a, lda, b + j, ldb, c + j, ldc, tail, accumulate);
    }
}

static void tile(i64 m, i64 n, i64 k, const float* a, i64 lda, const float* b, i64 ldb, float* c, i64 ldc,
                 bool accumulate) {
    i64 i = 0;
    const auto rest = [&] { return m - i; };
    for (; rest() >= kTileRows; i += kTileRows) {
        tile_rows<kTileRows, 2>(n, k, a + i * lda, lda, b, ldb, c + i * ldc, ldc, accumulate);
    }
    if constexpr (kTileRows > 8) {
        for (; rest() >= 8; i += 8) {
            tile_rows<8, 2>(n, k, a + i * lda, lda, b, ldb, c + i * ldc, ldc, accumulate);
        }
    }
    if constexpr (kTileRows > 4) {
        for (; rest() >= 4; i += 4) {
            tile_rows<4, 2>(n, k, a + i * lda, lda, b, ldb, c + i * ldc, ldc, accumulate);
        }
    }
    for (; rest() >= 2; i += 2) {
        tile_rows<2, 4>(n, k, a + i * lda, lda, b, ldb, c + i * ldc, ldc, accumulate);
    }
    if (rest() == 1) tile_rows<1, 4>(n, k, a + i * lda, lda, b, ldb, c + i * ldc, ldc, accumulate);
}
