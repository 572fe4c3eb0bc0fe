/* The kernels, written once over the vector operations that an instruction-set file defines before including this:
 *
 *   LANES, vec                      lanes of a float vector (4, 8 or 16) and its type
 *   v_zero, v_set, v_load, v_store, v_add, v_fma, v_sum
 *   v_load_bf16, v_load_f16, v_load_i8   LANES values, widened to float
 *   v_expand(v, bits)               lane j of the result: the next unused lane of v where bit j is set, else 0
 *   v_pack(out, v, bits)            store the lanes whose bit is set one after the other (LANES floats may be written)
 *   decode_q4_word(codes, total, code, word, grid, w, blocks, dense, out)   word w of a row of 4-bit codes as GROUPS
 *                                   vectors, 0 where the mask has no bit; codes from number `code` on, block grids
 *   list_columns(out, word, base)   append base + (positions of set bits) as 16-bit numbers (64 may be written)
 *   count_below(columns, left, bound)   how many of the first 64 ascending columns (at most `left`) are below bound
 *   look(indices, x)                LANES values of x at 16-bit indices
 *   BLOCK_ROWS                      rows whose sums of two vectors each stay in registers
 *   transpose_block(in, in_stride, out, out_stride)   LANES x LANES floats: out[j][i] = in[i][j]
 *   SH_MASKED_REST                  optional: rest_of_row(values, type, indices, left, x, sum), what a row holds behind
 *                                   its whole vectors added to their sum in one step
 *   SH_OWN_BF16                     optional: products of bfloat16 pairs
 *   SH_OWN_Q4                       optional: products of 4-bit codes for few tokens
 *   SH_OWN_FEW                      optional: for one token small_mixed, masks of rows that may keep few weights, and
 *                                   small_quarter, one weight of four
 *   SH_SMALL_BY_LIST                optional: expansion is slow, list the columns of a row instead
 */
#include <string.h>

#define GROUPS (SH_WORD / LANES)
#define GROUP_BITS ((uint64_t)(LANES == 64 ? ~0ull : (1ull << LANES) - 1))
#define INLINE static inline __attribute__((always_inline))

INLINE int64_t words_of(const sh_matrix *m) { return (m->columns + SH_WORD - 1) / SH_WORD; }

INLINE int64_t element_bytes(int type) { return type == SH_F32 ? 4 : type == SH_I8 ? 1 : 2; }

INLINE vec load_values(const char *p, int type) {
    switch (type) {
    case SH_F32: return v_load((const float *)(const void *)p);
    case SH_BF16: return v_load_bf16((const uint16_t *)(const void *)p);
    case SH_F16: return v_load_f16((const uint16_t *)(const void *)p);
    default: return v_load_i8((const int8_t *)p);
    }
}

#include "gather.h"

/* 32 position bits as a mask of 64 columns: the 2-bit code of group g becomes one of bits 4g to 4g + 3. */
INLINE uint64_t mask_of_positions(uint64_t codes) {
    codes = (codes | codes << 16) & 0x0000ffff0000ffffull;
    codes = (codes | codes << 8) & 0x00ff00ff00ff00ffull;
    codes = (codes | codes << 4) & 0x0f0f0f0f0f0f0f0full;
    codes = (codes | codes << 2) & 0x3333333333333333ull;
    uint64_t low = codes & 0x1111111111111111ull, high = (codes >> 1) & 0x1111111111111111ull;
    uint64_t none = ~(low | high) & 0x1111111111111111ull;
    return none | (low & ~high) << 1 | (high & ~low) << 2 | (low & high) << 3;
}

/* Mask of columns 64 w to 64 w + 63 of row r. */
INLINE uint64_t word_of(const sh_matrix *m, int layout, int64_t r, int64_t w) {
    if (layout == SH_DENSE) {
        int64_t left = m->columns - w * SH_WORD;
        return left >= SH_WORD ? ~0ull : (1ull << left) - 1;
    }
    if (layout != SH_ONE_OF_FOUR) return m->mask[r * words_of(m) + w];
    int64_t row_bytes = (m->columns + 15) / 16, left = row_bytes - w * 4;
    uint32_t codes = 0;
    /* A copy of unknown length would be a call, for every word. */
    if (left >= 4) memcpy(&codes, m->positions + r * row_bytes + w * 4, 4);
    else memcpy(&codes, m->positions + r * row_bytes + w * 4, (size_t)left);
    int64_t columns = m->columns - w * SH_WORD;
    return mask_of_positions(codes) & (columns >= SH_WORD ? ~0ull : (1ull << columns) - 1);
}

INLINE int64_t row_start(const sh_matrix *m, int layout, int64_t r) {
    if (layout == SH_DENSE) return m->type == SH_Q4 ? r * ((m->columns + 31) / 32 * 16) : r * m->columns;
    return m->offsets ? m->offsets[r] : r * m->per_row;
}

/* ---- one word of 64 columns: GROUPS vectors of decoded weights ----------------------------------------------- */

typedef struct {
    const char *p;      /* values of this row that are not yet used */
    int64_t code;       /* SH_Q4: number of the next code */
    const uint8_t *grid; /* SH_Q4: scales of this row */
} cursor;

INLINE cursor open_row(const sh_matrix *m, int layout, int type, int64_t r) {
    cursor c = {NULL, 0, NULL};
    int64_t start = row_start(m, layout, r);
    if (type == SH_Q4) {
        c.code = 2 * start;
        c.grid = (const uint8_t *)m->scales + r * ((m->columns + 31) / 32) * 4;
    } else {
        c.p = (const char *)m->values + start * element_bytes(type);
    }
    return c;
}

/* Decode word w. `careful`: fewer than 64 elements may lie behind the cursor, or behind the row (dense). */
INLINE void decode_word(const sh_matrix *m, int layout, int type, cursor *c, uint64_t word, int64_t w, int careful,
                        vec out[GROUPS]) {
    if (type == SH_Q4) {
        decode_q4_word((const uint8_t *)m->values, m->total, c->code, word, c->grid, w, (m->columns + 31) / 32,
                       layout == SH_DENSE, out);
        c->code += layout == SH_DENSE ? SH_WORD : __builtin_popcountll(word);
        return;
    }
    int64_t size = element_bytes(type);
    const char *p = c->p;
    c->p += __builtin_popcountll(word) * size;
    char copy[SH_WORD * 4 + 64];
    if (careful) {
        memset(copy, 0, sizeof copy);
        memcpy(copy, p, (size_t)(c->p - p));
        p = copy;
    } else {
        /* To the second level: prefetching into the first costs a quarter of the bandwidth on AMD. */
        int64_t ahead = layout == SH_DENSE ? 4096 : 16384;
        for (int64_t line = 0; line < SH_WORD * size; line += 64) __builtin_prefetch(p + ahead + line, 0, 2);
    }
    for (int g = 0; g < GROUPS; g++) {
        if (layout == SH_DENSE) {
            out[g] = load_values(p + g * LANES * size, type);
        } else {
            /* The start of every group follows from the whole word, so that only one addition per word is serial. */
            uint64_t before = g ? word & (~0ull >> (SH_WORD - g * LANES)) : 0;
            const char *q = p + __builtin_popcountll(before) * size;
            out[g] = v_expand(load_values(q, type), (uint32_t)(word >> (g * LANES) & GROUP_BITS));
        }
    }
}

INLINE int is_careful(const sh_matrix *m, int layout, int type, int64_t r, int64_t w) {
    if (type == SH_Q4) return 0;
    if (layout == SH_DENSE) return (w + 1) * SH_WORD > m->columns;
    return row_start(m, layout, r + 1) + SH_WORD > m->total;
}

/* ---- up to four tokens, weights decoded in registers ---------------------------------------------------------- */

INLINE void small_row(const sh_matrix *m, const sh_work *work, int64_t r, int layout, int type, int tokens,
                      int careful) {
    enum { CHAINS = 4 };
    vec sums[SH_SMALL_TOKENS][CHAINS];
    int chains = tokens == 1 ? 4 : tokens == 2 ? 2 : 1;
    for (int t = 0; t < tokens; t++)
        for (int i = 0; i < chains; i++) sums[t][i] = v_zero();
    cursor c = open_row(m, layout, type, r);
    int64_t words = words_of(m);
    for (int64_t w = 0; w < words; w++) {
        vec weights[GROUPS];
        decode_word(m, layout, type, &c, word_of(m, layout, r, w), w, careful || (layout == SH_DENSE && is_careful(m, layout, type, r, w)), weights);
        const float *x = work->rows + w * SH_WORD;
        for (int g = 0; g < GROUPS; g++)
            for (int t = 0; t < tokens; t++)
                sums[t][g % chains] =
                    v_fma(weights[g], v_load(x + t * work->padded_columns + g * LANES), sums[t][g % chains]);
    }
    float scale = type == SH_I8 ? ((const float *)m->scales)[r] : 1.0f;
    for (int t = 0; t < tokens; t++) {
        vec sum = sums[t][0];
        for (int i = 1; i < chains; i++) sum = v_add(sum, sums[t][i]);
        work->y[t * m->rows + r] = v_sum(sum) * scale;
    }
}

INLINE void small_rows(const sh_matrix *m, const sh_work *work, int64_t first, int64_t last, int layout, int type,
                       int tokens) {
    for (int64_t r = first; r < last; r++) {
        if (layout != SH_DENSE && is_careful(m, layout, type, r, 0)) small_row(m, work, r, layout, type, tokens, 1);
        else small_row(m, work, r, layout, type, tokens, 0);
    }
}

#define BY_TOKENS(layout, type)                                                                                        \
    switch (work->tokens) {                                                                                            \
    case 1: small_rows(m, work, first, last, layout, type, 1); break;                                                  \
    case 2: small_rows(m, work, first, last, layout, type, 2); break;                                                  \
    case 3: small_rows(m, work, first, last, layout, type, 3); break;                                                  \
    default: small_rows(m, work, first, last, layout, type, 4); break;                                                 \
    }

#define SMALL(name, layout, type)                                                                                      \
    static void name(const sh_matrix *m, const sh_work *work, int64_t first, int64_t last) { BY_TOKENS(layout, type) }

SMALL(small_dense_f32, SH_DENSE, SH_F32)
SMALL(small_dense_bf16, SH_DENSE, SH_BF16)
SMALL(small_dense_f16, SH_DENSE, SH_F16)
SMALL(small_dense_i8, SH_DENSE, SH_I8)
SMALL(small_dense_q4, SH_DENSE, SH_Q4)
SMALL(small_bitmap_f32, SH_BITMAP, SH_F32)
SMALL(small_bitmap_bf16, SH_BITMAP, SH_BF16)
SMALL(small_bitmap_f16, SH_BITMAP, SH_F16)
SMALL(small_bitmap_i8, SH_BITMAP, SH_I8)
SMALL(small_bitmap_q4, SH_BITMAP, SH_Q4)
SMALL(small_quarter_f32, SH_ONE_OF_FOUR, SH_F32)
SMALL(small_quarter_bf16, SH_ONE_OF_FOUR, SH_BF16)
SMALL(small_quarter_f16, SH_ONE_OF_FOUR, SH_F16)

#ifdef SH_SMALL_BY_LIST
static void small_by_list(const sh_matrix *m, const sh_work *work, int64_t first, int64_t last);
#endif

static void small(const sh_matrix *m, const sh_work *work, int64_t first, int64_t last) {
    if (m->layout == SH_INDEX16) {
        const char *values = (const char *)m->values;
        for (int64_t r = first; r < last; r++) {
            int64_t start = m->offsets[r], count = m->offsets[r + 1] - start;
            for (int64_t t = 0; t < work->tokens; t++)
                work->y[t * m->rows + r] = gather_row(values + start * element_bytes(m->type), m->type,
                                                      m->indices + start, count, work->rows + t * work->padded_columns);
        }
        return;
    }
#ifdef SH_SMALL_BY_LIST
    if (m->layout != SH_DENSE) {
        small_by_list(m, work, first, last);
        return;
    }
#endif
#ifdef SH_OWN_Q4
    if (m->type == SH_Q4) {
        small_q4(m, work, first, last);
        return;
    }
#endif
#ifdef SH_OWN_FEW
    if ((m->layout == SH_BITMAP || m->layout == SH_KEEP) && work->tokens == 1) {
        small_mixed(m, work, first, last);
        return;
    }
    if (m->layout == SH_ONE_OF_FOUR && work->tokens == 1) {
        small_quarter(m, work, first, last);
        return;
    }
#endif
#ifdef SH_OWN_BF16
    if (m->type == SH_BF16 && work->bfloat16 && small_bf16(m, work, first, last)) return;
#endif
    static void (*const table[3][5])(const sh_matrix *, const sh_work *, int64_t, int64_t) = {
        {small_dense_f32, small_dense_bf16, small_dense_f16, small_dense_i8, small_dense_q4},
        {small_bitmap_f32, small_bitmap_bf16, small_bitmap_f16, small_bitmap_i8, small_bitmap_q4},
        {small_quarter_f32, small_quarter_bf16, small_quarter_f16, NULL, NULL},
    };
    table[m->layout == SH_DENSE ? 0 : m->layout == SH_ONE_OF_FOUR ? 2 : 1][m->type](m, work, first, last);
}

static void transpose(const float *in, int64_t in_stride, int64_t rows, int64_t columns, float *out, int64_t out_stride) {
    for (int64_t j = 0; j < columns; j += LANES)
        for (int64_t i = 0; i < rows; i += LANES) {
            int64_t height = rows - i < LANES ? rows - i : LANES, width = columns - j < LANES ? columns - j : LANES;
            const float *from = in + i * in_stride + j;
            float *to = out + j * out_stride + i;
            if (height == LANES && width == LANES) {
                transpose_block(from, in_stride, to, out_stride);
                continue;
            }
            for (int64_t a = 0; a < height; a++)
                for (int64_t b = 0; b < width; b++) to[b * out_stride + a] = from[a * in_stride + b];
        }
}

/* ---- tokens in lanes ------------------------------------------------------------------------------------------ */

/* A panel of a row: its stored weights as floats with 16-bit columns, and where every word of 64 columns ends. */
typedef struct {
    const float *values;
    const uint16_t *columns;
    uint16_t ends[SH_PANEL_WORDS];
} piece;

INLINE void widen(const char *stored, int type, float scale, int64_t count, float *out) {
    int64_t size = element_bytes(type), i = 0;
    for (; i + LANES <= count; i += LANES)
        v_store(out + i, v_fma(load_values(stored + i * size, type), v_set(scale), v_zero()));
    if (i < count) {
        char copy[LANES * 4];
        memset(copy, 0, sizeof copy);
        memcpy(copy, stored + i * size, (size_t)((count - i) * size));
        v_store(out + i, v_fma(load_values(copy, type), v_set(scale), v_zero()));
    }
}

/* List the words [w0, w1) of row r, whose cursor stands at w0. */
static void list_piece(const sh_matrix *m, int64_t r, cursor *c, int64_t w0, int64_t w1, float *value_room,
                       uint16_t *column_room, piece *out) {
    int64_t count = 0;
    const char *stored = c->p;
    if (m->layout == SH_INDEX16) {
        const uint16_t *columns = m->indices + c->code;
        int64_t left = m->offsets[r + 1] - c->code;
        for (int64_t w = w0; w < w1; w++) {
            count += count_below(columns + count, left - count, (uint32_t)((w + 1) * SH_WORD));
            out->ends[w - w0] = (uint16_t)count;
        }
        out->columns = columns;
        c->code += count;
    } else {
        for (int64_t w = w0; w < w1; w++) {
            uint64_t word = word_of(m, m->layout, r, w);
            if (m->type == SH_Q4) {
                vec weights[GROUPS];
                decode_word(m, m->layout, SH_Q4, c, word, w, 0, weights);
                float *packed = value_room + count;
                for (int g = 0; g < GROUPS; g++) {
                    uint64_t bits = word >> (g * LANES) & GROUP_BITS;
                    v_pack(packed, weights[g], (uint32_t)bits);
                    packed += __builtin_popcountll(bits);
                }
            }
            list_columns(column_room + count, word, (uint32_t)(w * SH_WORD));
            count += __builtin_popcountll(word);
            out->ends[w - w0] = (uint16_t)count;
        }
        out->columns = column_room;
    }
    out->values = value_room;
    switch (m->type) {
    case SH_F32:
        out->values = (const float *)(const void *)stored;
        /* Read here in order: later every row's share of a chunk is read in turn, which no hardware foresees. */
        for (int64_t line = 0; line < count * 4; line += 64) __builtin_prefetch(stored + line, 0, 2);
        break;
    case SH_BF16: widen(stored, SH_BF16, 1.0f, count, value_room); break;
    case SH_F16: widen(stored, SH_F16, 1.0f, count, value_room); break;
    case SH_I8: widen(stored, SH_I8, ((const float *)m->scales)[r], count, value_room); break;
    default: break;
    }
    if (m->type != SH_Q4) c->p += count * element_bytes(m->type);
}

/* Add values[i] * x[columns[i]] to `vectors` vectors of tokens; `chains` sums run beside each other. */
INLINE void lanes_piece(const float *values, const uint16_t *columns, int64_t count, const float *x, float *out,
                        int vectors, int chains) {
    vec sums[4][SH_LANE_VECTORS];
    for (int v = 0; v < vectors; v++) sums[0][v] = v_load(out + v * LANES);
    for (int i = 1; i < chains; i++)
        for (int v = 0; v < vectors; v++) sums[i][v] = v_zero();
    int64_t n = 0;
    for (; n + chains <= count; n += chains)
        for (int i = 0; i < chains; i++) {
            vec weight = v_set(values[n + i]);
            const float *row = x + (int64_t)columns[n + i] * (vectors * LANES);
            for (int v = 0; v < vectors; v++) sums[i][v] = v_fma(weight, v_load(row + v * LANES), sums[i][v]);
        }
    for (; n < count; n++) {
        vec weight = v_set(values[n]);
        const float *row = x + (int64_t)columns[n] * (vectors * LANES);
        for (int v = 0; v < vectors; v++) sums[0][v] = v_fma(weight, v_load(row + v * LANES), sums[0][v]);
    }
    for (int v = 0; v < vectors; v++) {
        vec sum = sums[0][v];
        for (int i = 1; i < chains; i++) sum = v_add(sum, sums[i][v]);
        v_store(out + v * LANES, sum);
    }
}

/* A chunk of x should fit the first-level cache (4 words of 64 columns per vector of tokens), and a row's share of it
 * should hold enough weights that starting it costs little beside them. */
#define PIECE_WEIGHTS 40
INLINE int64_t widest(int64_t a, int64_t b) { return a > b ? a : b; }

/* All chunks of a panel for one group of tokens: a chunk of x stays in the first-level cache for all rows. */
INLINE void lanes_group(const piece *pieces, int rows, int64_t words, const float *x, float *sums, int64_t stride,
                        int64_t chunk, int vectors, int chains) {
    for (int64_t w = 0; w < words; w += chunk) {
        int64_t last = (w + chunk < words ? w + chunk : words) - 1;
        for (int i = 0; i < rows; i++) {
            int64_t start = w ? pieces[i].ends[w - 1] : 0;
            lanes_piece(pieces[i].values + start, pieces[i].columns + start, pieces[i].ends[last] - start, x,
                        sums + i * stride, vectors, chains);
        }
    }
}

static void lanes(const sh_matrix *m, const sh_work *work, int64_t first, int64_t last) {
    int64_t stride = (work->tokens + LANES - 1) / LANES * LANES, words = words_of(m);
    int64_t stored = m->type == SH_Q4 ? 2 * m->total : m->total;
    int64_t per_word = stored / (m->rows * words) + 1, chunk = (PIECE_WEIGHTS + per_word - 1) / per_word;
    float *sums = (float *)work->scratch;
    float *value_room = sums + SH_PANEL_ROWS * stride;
    uint16_t *column_room = (uint16_t *)(void *)(value_room + SH_PANEL_ROWS * SH_PANEL_ROOM);
    for (int64_t r = first; r < last; r += SH_PANEL_ROWS) {
        int rows = last - r < SH_PANEL_ROWS ? (int)(last - r) : SH_PANEL_ROWS;
        cursor cursors[SH_PANEL_ROWS];
        for (int i = 0; i < rows; i++) {
            cursors[i] = open_row(m, m->layout, m->type, r + i);
            if (m->layout == SH_INDEX16) cursors[i].code = m->offsets[r + i];
        }
        memset(sums, 0, (size_t)(rows * stride) * sizeof *sums);
        for (int64_t w0 = 0; w0 < words; w0 += SH_PANEL_WORDS) {
            int64_t w1 = w0 + SH_PANEL_WORDS < words ? w0 + SH_PANEL_WORDS : words;
            piece pieces[SH_PANEL_ROWS];
            for (int i = 0; i < rows; i++)
                list_piece(m, r + i, &cursors[i], w0, w1, value_room + i * SH_PANEL_ROOM,
                           column_room + i * SH_PANEL_ROOM, &pieces[i]);
            for (int64_t token = 0; token < work->tokens;) {
                int64_t vectors = sh_group_vectors(work->tokens - token, LANES);
                const float *x = work->lanes + m->columns * token;
                switch (vectors) {
                case 1: lanes_group(pieces, rows, w1 - w0, x, sums + token, stride, widest(chunk, 4 / 1), 1, 4); break;
                case 2: lanes_group(pieces, rows, w1 - w0, x, sums + token, stride, widest(chunk, 4 / 2), 2, 2); break;
                case 3: lanes_group(pieces, rows, w1 - w0, x, sums + token, stride, widest(chunk, 4 / 3), 3, 1); break;
                default: lanes_group(pieces, rows, w1 - w0, x, sums + token, stride, widest(chunk, 4 / 4), 4, 1); break;
                }
                token += vectors * LANES;
            }
        }
        transpose(sums, stride, rows, work->tokens, work->y + r, m->rows);
    }
}

#ifdef SH_SMALL_BY_LIST
static void small_by_list(const sh_matrix *m, const sh_work *work, int64_t first, int64_t last) {
    float values[SH_PANEL_ROOM];
    uint16_t columns[SH_PANEL_ROOM];
    int64_t words = words_of(m);
    for (int64_t r = first; r < last; r++) {
        cursor c = open_row(m, m->layout, m->type, r);
        float sums[SH_SMALL_TOKENS] = {0, 0, 0, 0};
        for (int64_t w0 = 0; w0 < words; w0 += SH_PANEL_WORDS) {
            int64_t w1 = w0 + SH_PANEL_WORDS < words ? w0 + SH_PANEL_WORDS : words;
            piece listed;
            list_piece(m, r, &c, w0, w1, values, columns, &listed);
            for (int64_t t = 0; t < work->tokens; t++)
                sums[t] += gather_row((const char *)listed.values, SH_F32, listed.columns, listed.ends[w1 - w0 - 1],
                                      work->rows + t * work->padded_columns);
        }
        for (int64_t t = 0; t < work->tokens; t++) work->y[t * m->rows + r] = sums[t];
    }
}
#endif

#include "tile.h"
