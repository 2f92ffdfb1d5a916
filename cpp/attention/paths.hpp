// Texts that the paths of a tree of drafts make. A row reads the text before its tree, and then the rows on its path,
// in order: it is computed as though these followed the text. Included by attention/append.hpp.

// Number of the n-th bit, from 0, of those that are set.
MC_INLINE i64 nth_bit(u64 bits, i64 n) {
    for (; n > 0; --n) bits &= bits - 1;
    i64 bit = 0;
    while ((bits >> bit & 1) == 0) ++bit;
    return bit;
}

// Where the tokens of one path lie: `base` is the position of its tree's first row, `rows` has the bits of its rows.
struct Path {
    i64 base;
    u64 rows;

    // The position at which token t of its text was stored.
    i64 position(i64 t) const { return t < base ? t : base + nth_bit(rows, t - base); }

    // Whether all of its first n rows lie where they are in its text.
    bool in_place(i64 n) const { return n < 1 || rows << (64 - n) == ~u64(0) << (64 - n); }
};

// The row of a tree at whose end the path through `row` leads on, first children first; both within the tree.
MC_INLINE i64 leaf_of(const u64* ancestors, i64 rows, i64 row) {
    for (i64 next = row + 1; next < rows; ++next) {
        if (ancestors[next] >> row & 1) row = next;
    }
    return row;
}
