// y = x W^T for packed weights, by the ways of linear/ways.hpp. Included inside the namespace of the instruction set.

#include "linear/products.hpp"
#include "linear/floats.hpp"
#if defined(MC_HAS_INTS)
#include "linear/quantise.hpp"
#include "linear/blocks.hpp"
#if defined(MC_HAS_PANELS)
#include "linear/panels.hpp"
#endif
#if defined(MC_HAS_PAIRS)
#include "linear/pairs.hpp"
#endif
#if defined(MC_HAS_WORDS)
#include "linear/words.hpp"
#endif
#if defined(MC_HAS_BYTE_DOT)
#include "linear/halves.hpp"
#endif
#endif
#if defined(MC_HAS_TILES)
#include "linear/amx.hpp"
#endif

constexpr int kLevel = find_level(MC_NAME);
static_assert(kLevel < kNumLevels, "linear/ways.hpp does not know this level");
// Levels that compile their own ways alone: the others are those of the level that theirs goes on with, compiled there.
#if defined(MC_HAS_TILES)
#define MC_OTHER_WAYS isa_avx512_bf16::table
#elif defined(MC_ISA_AVX512_BF16)
#define MC_OTHER_WAYS isa_avx512_vnni::table
#endif
#if defined(MC_OTHER_WAYS)
constexpr bool kOwnWays = true;
#else
constexpr bool kOwnWays = false;
#endif

// The methods that this level has for a format, as bits.
template <class F>
constexpr u32 kMethodsOf = methods_for<kOwnWays>(kLevel, F::KIND);

template <class F, int M = 0>
static void multiply_by(Method method, Pool& pool, const SharedProducts& all) {
    if constexpr (M < kMethods) {
        if constexpr ((kMethodsOf<F> >> M & 1U) != 0) {
            if (method == static_cast<Method>(M)) return Multiply<static_cast<Method>(M)>::template run<F>(pool, all);
        }
        multiply_by<F, M + 1>(method, pool, all);
    }
}

static void multiply(Pool& pool, const SharedProducts& all) {
    const LinearArgs& args = *all.args;
    const Product product = {args.w.kind, args.w.panels, args.n, args.bytes};
#if defined(MC_OTHER_WAYS)
    const Way* way = args.w.cols > 0 ? find_own_way(kLevel, product) : nullptr;
    if (way == nullptr) return MC_OTHER_WAYS.linears(pool, all.args, all.count);
#else
    if (args.w.cols == 0) return multiply_nothing(all);
    const Way* way = find_way(kLevel, product);
#endif
    switch (args.w.kind) {
        case Kind::f32: return multiply_by<FormatF32>(way->method, pool, all);
        case Kind::f16: return multiply_by<FormatF16>(way->method, pool, all);
        case Kind::bf16: return multiply_by<FormatBF16>(way->method, pool, all);
        case Kind::int8: return multiply_by<FormatInt8>(way->method, pool, all);
        case Kind::int4: return multiply_by<FormatInt4>(way->method, pool, all);
        case Kind::ternary: return multiply_by<FormatTernary>(way->method, pool, all);
        case Kind::int6: return multiply_by<FormatInt6>(way->method, pool, all);
        case Kind::int5: return multiply_by<FormatInt5>(way->method, pool, all);
        case Kind::int3: return multiply_by<FormatInt3>(way->method, pool, all);
        case Kind::int2: return multiply_by<FormatInt2>(way->method, pool, all);
    }
}

static void linear(Pool& pool, const LinearArgs& args) {
    if (args.n > 0 && args.w.rows > 0) multiply(pool, SharedProducts{&args, 1});
}

// Several products of the same x: together where they may share what is made of it.
static void linears(Pool& pool, const LinearArgs* args, i64 count) {
    bool shared = count > 1 && args->n > 0;
    for (i64 i = 0; i < count; ++i) shared = shared && args[i].w.rows > 0 && may_share(*args, args[i]);
    if (shared) return multiply(pool, SharedProducts{args, count});
    for (i64 i = 0; i < count; ++i) linear(pool, args[i]);
}

template <class F>
static void embed_format(Pool& pool, const EmbedArgs& args) {
    const i64 width = args.table.cols;
    auto body = [&](i64 begin, i64 end, int) {
        for (i64 i = begin; i < end; ++i) {
#if defined(MC_HAS_PANELS)
            if constexpr (F::GROUPED) {
                if (args.table.panels) {
                    unpack_panel_row<F>(args.table, args.ids[i], args.scale, args.y + i * width);
                    continue;
                }
            }
#endif
            unpack_row<F>(args.table, args.ids[i], 0, width, args.scale, args.y + i * width);
        }
    };
    parallel(pool, args.n, rows_per_task(width), body);
}

static void embed(Pool& pool, const EmbedArgs& args) {
    switch (args.table.kind) {
        case Kind::f32: return embed_format<FormatF32>(pool, args);
        case Kind::f16: return embed_format<FormatF16>(pool, args);
        case Kind::bf16: return embed_format<FormatBF16>(pool, args);
        case Kind::int8: return embed_format<FormatInt8>(pool, args);
        case Kind::int4: return embed_format<FormatInt4>(pool, args);
        case Kind::ternary: return embed_format<FormatTernary>(pool, args);
        case Kind::int6: return embed_format<FormatInt6>(pool, args);
        case Kind::int5: return embed_format<FormatInt5>(pool, args);
        case Kind::int3: return embed_format<FormatInt3>(pool, args);
        case Kind::int2: return embed_format<FormatInt2>(pool, args);
    }
}

// C = A B, for tests and for measuring what the machine can do.
static void matmul(Pool& pool, const float* a, const float* b, float* c, i64 m, i64 n, i64 k) {
    auto body = [=](i64 begin, i64 end, int) {
        tile(end - begin, n, k, a + begin * k, k, b, n, c + begin * n, n, false);
    };
    parallel(pool, m, kTileRows, body);
}
