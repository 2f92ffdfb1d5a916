// Queries and compressed keys as select/select.hpp computes with them. Included by it.

// One query (d), scaled by 1 / (sqrt(d) ln 2), rotated back with use_nope.
static void load_query(const SelectArgs& a, i64 row, i64 head, float* to) {
    const i64 d = a.kv.d;
    const i64 half = d / 2;
    const float scale = 1.44269504F / sqrtf(static_cast<float>(d));
    const float* q = a.q + (row * a.hq + head) * d;
    if (!a.use_nope) {
        for (i64 i = 0; i < d; ++i) to[i] = q[i] * scale;
        return;
    }
    const i64 position = a.step.angles[row];
    for (i64 i = 0; i < half; ++i) {
        const float c = a.rotary.cos[position * half + i];
        const float s = a.rotary.sin[position * half + i];
        const float factor = scale / (c * c + s * s);
        to[i] = (q[i] * c + q[i + half] * s) * factor;
        to[i + half] = (q[i + half] * c - q[i] * s) * factor;
    }
}

// The queries of a tile (columns, d), floats or codes and their scales.
template <bool DOT>
static void load_queries(const SelectArgs& a, const SelectTile& t, const SelectScratch& s) {
    const i64 d = a.kv.d;
    const i64 group = a.hq / a.kv.hkv;
    float query[kMaxHeadDim];
    for (i64 c = 0; c < t.columns; ++c) {
        load_query(a, t.row + c / group, t.head * group + c % group, query);
        if (DOT) {
            store_dot_row(query, d, reinterpret_cast<i16*>(s.queries) + c * d, s.scales + c);
        } else {
            memcpy(s.queries + c * d, query, static_cast<size_t>(d) * sizeof(float));
        }
    }
}

// Whether steps of decoding take codes of keys from pages as they lie there.
MC_INLINE bool reads_pages(bool dot, i64 d) { return dot && d % 32 == 0; }

// Largest of n scales.
MC_INLINE float largest(const float* scales, i64 n) {
    V most = zero();
    each_vector(n, [&](i64 i, int count) { most = max(load_some(scales + i, count), most); });
    return hmax(most);
}

// Floats of compressed key number `at` (pages, heads and slots counted together) of codes.
MC_INLINE void load_compressed(const Compressed& c, i64 at, i64 d, float* to) {
    const int16_t* codes = static_cast<const int16_t*>(c.data) + at * d;
    for (i64 i = 0; i < d; ++i) to[i] = static_cast<float>(codes[i]) * c.scales[at];
}

#if defined(MC_HAS_AVX512)
// to (16, kChunk) = transpose of 16 rows of 16 floats, from number `at` of each on.
MC_INLINE void transpose16(const float* const* from, i64 at, float* to) {
    __m512 a[16];
    __m512 b[16];
    MC_UNROLL
    for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_ps(from[i] + at);
    MC_UNROLL
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
    }
    MC_UNROLL
    for (int i = 0; i < 16; i += 4) {
        a[i] = _mm512_shuffle_ps(b[i], b[i + 2], 0x44);
        a[i + 1] = _mm512_shuffle_ps(b[i], b[i + 2], 0xee);
        a[i + 2] = _mm512_shuffle_ps(b[i + 1], b[i + 3], 0x44);
        a[i + 3] = _mm512_shuffle_ps(b[i + 1], b[i + 3], 0xee);
    }
    MC_UNROLL
    for (int i = 0; i < 4; ++i) {
        const __m512 p = _mm512_shuffle_f32x4(a[i], a[i + 4], 0x88);
        const __m512 q = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0x88);
        const __m512 r = _mm512_shuffle_f32x4(a[i], a[i + 4], 0xdd);
        const __m512 s = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0xdd);
        _mm512_storeu_ps(to + i * kChunk, _mm512_shuffle_f32x4(p, q, 0x88));
        _mm512_storeu_ps(to + (i + 4) * kChunk, _mm512_shuffle_f32x4(r, s, 0x88));
        _mm512_storeu_ps(to + (i + 8) * kChunk, _mm512_shuffle_f32x4(p, q, 0xdd));
        _mm512_storeu_ps(to + (i + 12) * kChunk, _mm512_shuffle_f32x4(r, s, 0xdd));
    }
}
#endif

// to (d, kChunk): up to kChunk keys side by side.
static void gather_across(const float* const* from, i64 count, i64 d, float* to) {
    i64 j = 0;
#if defined(MC_HAS_AVX512)
    for (; d % 16 == 0 && j + 16 <= count; j += 16) {
        for (i64 i = 0; i < d; i += 16) transpose16(from + j, i, to + i * kChunk + j);
    }
#endif
    for (; j < count; ++j) {
        for (i64 i = 0; i < d; ++i) to[i * kChunk + j] = from[j][i];
    }
}

// Calls visit(j, number) for keys first to first + count - 1 of a sequence, j from 0 on; their numbers: pages, heads and
// slots counted together.
template <class Visit>
MC_INLINE void each_key(const SelectArgs& a, const i32* table, i64 head, const KeySet& k, i64 first, i64 count,
                        Visit visit) {
    const i64 end = first * k.shape.stride + k.shape.size - 1;  // last token of the first one
    const i64 skip = k.shape.stride > a.kv.page_size ? k.shape.stride / a.kv.page_size : 1;
    const i64 slots = k.store->slots;
    i64 index = end / a.kv.page_size;
    i64 slot = end % a.kv.page_size / k.shape.stride;
    for (i64 j = 0; j < count; index += skip, slot = 0) {
        const i64 base = (table[index] * a.kv.hkv + head) * slots;
        for (; slot < slots && j < count; ++slot, ++j) visit(j, base + slot);
    }
}

// Numbers of keys first to first + count - 1 of a sequence.
static void find_keys(const SelectArgs& a, const i32* table, i64 head, const KeySet& k, i64 first, i64 count,
                      i64* numbers) {
    each_key(a, table, head, k, first, count, [&](i64 j, i64 number) { numbers[j] = number; });
}

// Where codes of keys first to first + count - 1 lie, and the scales of a unit of them, 0 behind the last. Places are filled
// up with the last key's: whole chunks are read, and chunks ahead asked for.
static void find_codes(const SelectArgs& a, const i32* table, i64 head, const KeySet& k, i64 first, i64 count,
                       const i16** keys, float* scales) {
    const i16* codes = static_cast<const i16*>(k.store->data);
    each_key(a, table, head, k, first, count, [&](i64 j, i64 number) {
        keys[j] = codes + number * a.kv.d;
        if (j < kUnit) scales[j] = k.store->scales[number];
    });
    for (i64 j = count; j < kUnit; ++j) scales[j] = 0.0F;
    for (i64 j = count; j < kUnit + kKeysAhead; ++j) keys[j] = keys[count - 1];
}

// Asks for keys that are read soon: into the second cache, whose misses in flight are more.
MC_INLINE void ask_for(const KeySet& k, const i64* numbers, i64 count, i64 d) {
#if defined(__GNUC__)
    const i64 bytes = d * (k.store->scales ? 2 : 4);
    for (i64 j = 0; j < count; ++j) {
        const char* from = static_cast<const char*>(k.store->data) + numbers[j] * bytes;
        for (i64 i = 0; i < bytes; i += 64) __builtin_prefetch(from + i, 0, 2);
    }
#else
    (void)k;
    (void)numbers;
    (void)count;
    (void)d;
#endif
}

// A chunk (depth, kChunk) of `count` keys; what is beyond them is 0.
template <bool DOT>
static void gather_chunk(const SelectArgs& a, const KeySet& k, const i64* numbers, i64 count, float* loaded,
                         float* to) {
    const i64 d = a.kv.d;
    const float* from[kChunk];
    for (i64 j = 0; j < count; ++j) {
        // Pairs of codes move as floats do; nothing is computed with them as such.
        from[j] = reinterpret_cast<const float*>(static_cast<const i16*>(k.store->data) + numbers[j] * d);
        if (DOT) continue;
        from[j] = static_cast<const float*>(k.store->data) + numbers[j] * d;
        if (!k.store->scales) continue;
        load_compressed(*k.store, numbers[j], d, loaded + j * d);
        from[j] = loaded + j * d;
    }
    if (count < kChunk) memset(to, 0, static_cast<size_t>(chunk_floats(DOT, d)) * sizeof(float));
    gather_across(from, count, DOT ? d / 2 : d, to);
}

// Scales of keys, 0 for what is beyond `count` up to a multiple of kChunk.
static void gather_scales(const KeySet& k, const i64* numbers, i64 count, float* to) {
    for (i64 j = 0; j < count; ++j) to[j] = k.store->scales[numbers[j]];
    for (i64 j = count; j < round_up(count, kChunk); ++j) to[j] = 0.0F;
}

// Floats of the chunks of one kv head's keys, side by side, and of their scales.
MC_INLINE i64 gathered_floats(bool dot, i64 d, const KeySet& k) {
    return round_up(k.visible, kChunk) / kChunk * (chunk_floats(dot, d) + kChunk);
}

// Where keys of a kv head lie, side by side, from `base` on; returns their end.
MC_INLINE const float* place_gathered(bool dot, i64 d, const float* base, KeySet* k) {
    k->codes = base;
    k->scales = base + round_up(k->visible, kChunk) / kChunk * chunk_floats(dot, d);
    return base + gathered_floats(dot, d, *k);
}

// Brings a unit of a sequence's keys, coarse ones first, to where place_gathered puts them from `base` on.
template <bool DOT>
static void gather_unit(const SelectArgs& a, const SelectTile& t, const SelectScratch& s, i64 unit, float* base) {
    const bool coarse = unit < t.coarse.units();
    const KeySet& k = coarse ? t.coarse : t.fine;
    if (coarse) {
        base += gathered_floats(DOT, a.kv.d, t.fine);
    } else {
        unit -= t.coarse.units();
    }
    const i64 floats = chunk_floats(DOT, a.kv.d);
    const i64 count = least(k.paged - unit * kUnit, kUnit);
    if (count <= 0) return;
    find_keys(a, t.table, t.head, k, unit * kUnit, count, s.numbers);
    for (i64 c = 0; c < count; c += kChunk) {
        float* to = base + (unit * kUnit + c) / kChunk * floats;
        ask_for(k, s.numbers + c + kChunk, least(count - c - kChunk, kChunk), a.kv.d);
        gather_chunk<DOT>(a, k, s.numbers + c, least(count - c, kChunk), s.loaded, to);
    }
    float* scales = base + round_up(k.visible, kChunk) / kChunk * floats + unit * kUnit;
    if (DOT) gather_scales(k, s.numbers, count, scales);
}
