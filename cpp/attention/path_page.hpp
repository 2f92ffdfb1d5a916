// Pages of a tree's paths: in them drafts lie as though the rows of one path had been decoded. Included by
// attention/attention.hpp.
//
// In a tile's walk page number `block` of a path has a number of its own, which is higher by kPathPages for each row
// before the one at the end of the path. Paths of 64 rows reach over 65 pages at most.

static constexpr i64 kPathPages = 65;
static constexpr i64 kNoPage = i64(1) << 40;  // beyond all numbers of pages

// Memory for one page, and which one it holds.
struct PathPage {
    KvView kv;
    i64 page;  // -1: none
};

struct PagePlace {
    const KvView* kv;
    i64 at;  // pages and heads counted together
};

// Number of a page within its text.
MC_INLINE i64 block_of(const AttendTile& t, i64 page) {
    return page < t.tail ? page : t.tail + (page - t.tail) % kPathPages;
}

// Numbers of the tile's rows within their sequence count from its first one.
MC_INLINE i64 leaf_in(const AttendArgs& a, const AttendTile& t, i64 r) {
    if (!a.step.ancestors) return 0;
    const i64 first = a.step.cu_rows[t.sequence];
    return leaf_of(a.step.ancestors + first, a.step.cu_rows[t.sequence + 1] - first, t.row + r - first);
}

// Floats that the page takes, and the page in them.
static i64 place_path_page(const KvView& kv, float* base, PathPage* to) {
    const i64 bytes = kv.kind == KvKind::f32 ? 4 : kv.kind == KvKind::bf16 ? 2 : 1;
    const i64 area = round_up(kv.d * kv.page_size * bytes / 4 + 1, W);
    const i64 scales = kv.key_scales ? round_up(kv.page_size, W) : 0;
    if (base) {
        to->kv = kv;
        to->kv.pages = to->kv.hkv = 1;
        to->kv.keys = base;
        to->kv.values = base + area;
        to->kv.key_scales = scales > 0 ? base + 2 * area : nullptr;
        to->kv.value_scales = scales > 0 ? base + 2 * area + scales : nullptr;
    }
    return 2 * (area + scales);
}

// Copies a (page, head) to the only one of `to`.
static void copy_page(const KvView& kv, i64 at, const KvView& to) {
    const i64 bytes = kv.kind == KvKind::f32 ? 4 : kv.kind == KvKind::bf16 ? 2 : 1;
    const size_t area = static_cast<size_t>(kv.d * kv.page_size * bytes);
    const size_t from = static_cast<size_t>(at) * area;
    memcpy(to.keys, static_cast<const char*>(kv.keys) + from, area);
    memcpy(to.values, static_cast<const char*>(kv.values) + from, area);
    if (!kv.key_scales) return;
    memcpy(to.key_scales, kv.key_scales + at * kv.page_size, static_cast<size_t>(kv.page_size) * sizeof(float));
    memcpy(to.value_scales, kv.value_scales + at * kv.page_size, static_cast<size_t>(kv.page_size) * sizeof(float));
}

// Copies tokens [begin, end) of a path into the page that they would be in.
template <class Page>
static void copy_path(const AttendArgs& a, const AttendTile& t, const Path& path, i64 begin, i64 end, const KvView& to) {
    const Page page(to, 0);
    for (i64 token = begin; token < end; ++token) {
        const i64 from = path.position(token);
        const Page other(a.kv, t.table[from / a.kv.page_size] * a.kv.hkv + t.head);
        page.copy(token % a.kv.page_size, other, from % a.kv.page_size);
    }
}

// A page of a path, which ends at row `leaf` of the tree: where it lies, if drafts have been stored in its order, or a
// copy in its order.
static PagePlace path_page(const AttendArgs& a, const AttendTile& t, PathPage* to, i64 page) {
    const i64 size = a.kv.page_size;
    const i64 block = block_of(t, page);
    const i64 leaf = a.step.cu_rows[t.sequence] + (page - t.tail) / kPathPages;
    const i64 at = t.table[block] * a.kv.hkv + t.head;
    const Path path = {t.base, a.step.ancestors[leaf]};
    const i64 after = a.step.angles[leaf] + i64(1);
    const i64 end = least((block + 1) * size, after);
    if (path.in_place(end - t.base)) return {&a.kv, at};
    if (to->page != page) {
        const i64 begin = greatest(block * size, t.base);
        if (begin > block * size) copy_page(a.kv, at, to->kv);
        if (a.kv.kind == KvKind::int8) {
            copy_path<Int8Page>(a, t, path, begin, end, to->kv);
        } else if (a.kv.kind == KvKind::bf16) {
            copy_path<PlainPage<u16>>(a, t, path, begin, end, to->kv);
        } else {
            copy_path<PlainPage<float>>(a, t, path, begin, end, to->kv);
        }
        to->page = page;
    }
    return {&to->kv, 0};
}

// Where a page of a tile's walk lies.
MC_INLINE PagePlace place_of(const AttendArgs& a, const AttendTile& t, PathPage* path, i64 page) {
    if (page < t.tail) return {&a.kv, t.table[page] * a.kv.hkv + t.head};
    return path_page(a, t, path, page);
}
