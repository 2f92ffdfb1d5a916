/* What two operands in registers can be multiplied and added at, by all threads together: JSON on standard
   output. Compiled for the very machine (or for less, by flags), so it stands beside what kernels reach. */
#if defined(__AMX_BF16__) && defined(__linux__)
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <unistd.h>
#define TILES 1
#endif
#include <immintrin.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define CHAINS 8 /* independent sums: no fewer than latency times ports */
#define ROUNDS 5000000L
#define MAX_THREADS 1024
#define TRIES 10 /* the fastest counts */

#if defined(__AVX512VNNI__)
#define LANES 16
typedef __m512i words;
#define ZERO _mm512_setzero_si512()
#define WORDS(sum) _mm512_dpwssd_epi32(sum, a, b)
#define BYTES(sum) _mm512_dpbusd_epi32(sum, a, b)
#define KEEP(sum) __asm__ volatile("" : "+v"(sum))
#elif defined(__AVX2__)
#define LANES 8
typedef __m256i words;
#define ZERO _mm256_setzero_si256()
#define ONES _mm256_set1_epi16(1)
#define WORDS(sum) _mm256_add_epi32(sum, _mm256_madd_epi16(a, b))
#define BYTES(sum) _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ONES))
#define KEEP(sum) __asm__ volatile("" : "+x"(sum))
#else
#error "no vectors that are known here"
#endif

/* Named variables and no array: every sum stays in a register. KEEP hides from the compiler what a holds, or
   it would take the product out of the loop. */
#define ONE(STEP, sum) sum = STEP(sum); KEEP(sum); KEEP(a);
#define RUN(name, STEP)                                                                               \
    static void *name(void *unused)                                                                   \
    {                                                                                                 \
        words a = ZERO, b = ZERO, s0 = a, s1 = a, s2 = a, s3 = a, s4 = a, s5 = a, s6 = a, s7 = a;     \
        KEEP(b);                                                                                      \
        for (long round = 0; round < ROUNDS; ++round) {                                               \
            ONE(STEP, s0) ONE(STEP, s1) ONE(STEP, s2) ONE(STEP, s3)                                   \
            ONE(STEP, s4) ONE(STEP, s5) ONE(STEP, s6) ONE(STEP, s7)                                   \
        }                                                                                             \
        return unused;                                                                                \
    }
RUN(run_words, WORDS)
RUN(run_bytes, BYTES)

#if defined(TILES)
/* Matrix tiles, asked of the system once: 16 rows of 64 bytes each, four sums under way. Assembly, as in cpp/simd/tiles.hpp. */
#define TILE_ROUNDS 1000000L
#define TILE_CHAINS 4
#define TILE_LANES (16 * 16)
static int tiles_granted(void) { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }
#define RUN_TILES(name, OP)                                                                           \
    static void *name(void *unused)                                                                   \
    {                                                                                                 \
        struct { unsigned char palette, row, none[14]; unsigned short bytes[16]; unsigned char rows[16]; }  \
            shapes __attribute__((aligned(64))) = {.palette = 1};                                     \
        for (int tile = 0; tile < 8; ++tile) {                                                        \
            shapes.bytes[tile] = 64;                                                                  \
            shapes.rows[tile] = 16;                                                                   \
        }                                                                                             \
        __asm__ volatile("ldtilecfg %0\n\ttilezero %%tmm4\n\ttilezero %%tmm5\n\ttilezero %%tmm6\n\ttilezero %%tmm7" \
                         : : "m"(shapes));                                                            \
        for (long round = 0; round < TILE_ROUNDS; ++round)                                            \
            __asm__ volatile(OP " %%tmm6, %%tmm4, %%tmm0\n\t" OP " %%tmm7, %%tmm4, %%tmm1\n\t"        \
                             OP " %%tmm6, %%tmm5, %%tmm2\n\t" OP " %%tmm7, %%tmm5, %%tmm3" : : );      \
        __asm__ volatile("tilerelease");                                                              \
        return unused;                                                                                \
    }
RUN_TILES(run_tile_halves, "tdpbf16ps")
RUN_TILES(run_tile_bytes, "tdpbusd")
#endif

static double once(void *(*run)(void *), int threads, double products)
{
    pthread_t started[MAX_THREADS];
    struct timespec before, after;
    clock_gettime(CLOCK_MONOTONIC, &before);
    for (int index = 0; index < threads; ++index)
        pthread_create(&started[index], NULL, run, NULL);
    for (int index = 0; index < threads; ++index)
        pthread_join(started[index], NULL);
    clock_gettime(CLOCK_MONOTONIC, &after);
    double seconds = (double)(after.tv_sec - before.tv_sec) + 1e-9 * (double)(after.tv_nsec - before.tv_nsec);
    return 2.0 * products * threads / seconds;
}

/* Operations (products and sums) a second of `threads` threads, each of which makes so many products. */
static double measure(void *(*run)(void *), int threads, double products)
{
    double best = 0.0;
    for (int attempt = 0; attempt < TRIES; ++attempt) {
        double found = once(run, threads, products);
        best = found > best ? found : best;
    }
    return best;
}

int main(int count, char **values)
{
    int threads = count > 1 ? atoi(values[1]) : 1;
    if (threads < 1 || threads > MAX_THREADS)
        return 2;
    double rounds = (double)LANES * CHAINS * ROUNDS;
    double wide = measure(run_words, threads, 2 * rounds), narrow = measure(run_bytes, threads, 4 * rounds);
    printf("{\"int16_ops_per_s\": %.6g, \"int8_ops_per_s\": %.6g", wide, narrow);
#if defined(TILES)
    if (tiles_granted()) { /* 16 rows of sums, each of 32 halves or 64 bytes */
        double tiles = (double)TILE_LANES * TILE_CHAINS * TILE_ROUNDS;
        printf(", \"tile_bf16_ops_per_s\": %.6g", measure(run_tile_halves, threads, 32 * tiles));
        printf(", \"tile_int8_ops_per_s\": %.6g", measure(run_tile_bytes, threads, 64 * tiles));
    }
#endif
    printf("}\n");
    return 0;
}
