// What the rows of a tile see of a page: its tokens up to their own places, of those in the layer's window. Included by
// attention/attention.hpp.

// The lowest n bits.
MC_INLINE u64 low_bits(i64 n) { return n >= 64 ? ~u64(0) : n <= 0 ? 0 : (u64(1) << n) - 1; }

struct Seen {
    const i32* places;  // of the tile's rows in their texts; those of rows that read one page ascend
    i64 start;          // place of the page's first token
    i64 size;           // tokens of a page
    i64 window;         // tokens that a row reads, its own included; 0: all before it

    // Tokens of the page up to a row's own.
    i64 count(i64 row) const {
        const i64 tokens = places[row] + i64(1) - start;
        return tokens < size ? tokens : size;
    }

    // Tokens at the page's start that lie before a row's window. What follows is for rows of which none does.
    i64 hidden(i64 row) const {
        const i64 tokens = window > 0 ? places[row] + i64(1) - window - start : 0;
        return tokens > 0 ? tokens : 0;
    }

    // Bit t: whether the row sees token t, of the page's first 64.
    u64 mask(i64 row) const { return low_bits(count(row)); }
};
