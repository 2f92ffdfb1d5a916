// What attention does once for every instruction set.
#include <algorithm>
#include <cstring>
#include <limits>

#include "attention_api.hpp"

#if defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>
#endif

namespace minicpm4 {
namespace {

// A key whose order is: higher score first, then lower index. Scores are >= 0, or -1 for "none".
u64 rank_key(float score, i64 index) {
    u32 bits = 0;
    if (score >= 0.0F) {
        std::memcpy(&bits, &score, sizeof bits);
        bits = (bits & 0x7fffffffU) + 1;  // non-negative floats sort like their bits
    }
    return (static_cast<u64>(~bits) << 32) | static_cast<u64>(index);
}

// The `wanted` best of `candidates` scores into the first of keys, in any order. One pass: what is not above
// the worst of the best so far is passed over.
void best_of(const float* scores, i64 first, i64 candidates, i64 wanted, u64* keys) {
    float least = -std::numeric_limits<float>::infinity();
    i64 count = 0;
    const auto keep_best = [&] {
        std::nth_element(keys, keys + wanted - 1, keys + count);
        count = wanted;
        // A later block needs a higher score: on a tie the lower block is chosen. No score is like -1.
        const float worst = scores[static_cast<i64>(keys[wanted - 1] & 0xffffffffU)];
        least = worst > -1.0F ? worst : -1.0F;
    };
    for (i64 i = first; i < first + candidates; ++i) {
        const float score = scores[i];
        if (count >= wanted && !(score > least)) continue;
        keys[count++] = rank_key(score, i);
        if (count == 2 * wanted + 64) keep_best();
    }
    if (count > wanted) keep_best();
}

}  // namespace

bool is_last(i64* left) {
#if defined(_MSC_VER) && !defined(__clang__)
    return _InterlockedDecrement64(left) == 0;
#else
    return __atomic_sub_fetch(left, 1, __ATOMIC_ACQ_REL) == 0;
#endif
}

i64 choose_blocks(const SelectArgs& args, const float* scores, i64 own, u64* keys, i32* blocks) {
    const i64 first_local = std::max<i64>(own + 1 - args.local_blocks, 0);
    const i64 init = std::min(args.init_blocks, first_local);
    const i64 wanted = std::min(args.topk - args.init_blocks, first_local - init);
    i64 count = 0;
    for (i64 b = 0; b < init; ++b) blocks[count++] = static_cast<i32>(b);
    const i64 candidates = first_local - init;
    if (wanted == candidates) {
        for (i64 b = init; b < first_local; ++b) blocks[count++] = static_cast<i32>(b);
    } else if (wanted > 0) {
        best_of(scores, init, candidates, wanted, keys);
        for (i64 i = 0; i < wanted; ++i) blocks[count + i] = static_cast<i32>(keys[i] & 0xffffffffU);
        std::sort(blocks + count, blocks + count + wanted);
        count += wanted;
    }
    for (i64 b = first_local; b <= own; ++b) blocks[count++] = static_cast<i32>(b);
    std::fill(blocks + count, blocks + args.topk + args.local_blocks, -1);
    return count;
}

}  // namespace minicpm4
