/* Many tokens, rows decoded: a block of rows is decoded into the first-level cache, a panel of columns at a time, and
 * multiplied with tokens that lie in the lanes of vectors. Sums of a block stay in registers over a whole panel; the
 * panel's share of x stays in the second-level cache for all rows of a band. Included by template.h. */

/* ---- rows decoded to a tile, then a dense product ------------------------------------------------------------- */

/* Decode words [w0, w1) of a row whose cursor stands at w0. */
INLINE void decode_words(const sh_matrix *m, int layout, int type, int64_t r, cursor *c, int64_t w0, int64_t w1,
                         float *out) {
    vec scale = v_set(type == SH_I8 ? ((const float *)m->scales)[r] : 1.0f);
    for (int64_t w = w0; w < w1; w++, out += SH_WORD) {
        vec weights[GROUPS];
        decode_word(m, layout, type, c, word_of(m, layout, r, w), w, is_careful(m, layout, type, r, w), weights);
        for (int g = 0; g < GROUPS; g++)
            v_store(out + g * LANES, type == SH_I8 ? v_fma(weights[g], scale, v_zero()) : weights[g]);
    }
}

#define DECODE(layout)                                                                                                 \
    switch (m->type) {                                                                                                 \
    case SH_F32: decode_words(m, layout, SH_F32, r, c, w0, w1, out); break;                                            \
    case SH_BF16: decode_words(m, layout, SH_BF16, r, c, w0, w1, out); break;                                          \
    case SH_F16: decode_words(m, layout, SH_F16, r, c, w0, w1, out); break;                                            \
    case SH_I8: decode_words(m, layout, SH_I8, r, c, w0, w1, out); break;                                              \
    default: decode_words(m, layout, SH_Q4, r, c, w0, w1, out); break;                                                 \
    }

static void decode_piece(const sh_matrix *m, int64_t r, cursor *c, int64_t w0, int64_t w1, float *out) {
    if (m->layout == SH_INDEX16) {
        memset(out, 0, (size_t)((w1 - w0) * SH_WORD) * sizeof *out);
        int64_t end = m->offsets[r + 1], size = element_bytes(m->type);
        for (; c->code < end && m->indices[c->code] < w1 * SH_WORD; c->code++) {
            const char *p = (const char *)m->values + c->code * size;
            uint16_t half;
            float value;
            if (m->type == SH_F32) memcpy(&value, p, 4);
            else {
                memcpy(&half, p, 2);
                value = m->type == SH_BF16 ? sh_from_bf16(half) : sh_from_f16(half);
            }
            out[m->indices[c->code] - w0 * SH_WORD] = value;
        }
    } else if (m->layout == SH_DENSE) {
        DECODE(SH_DENSE)
    } else if (m->layout == SH_ONE_OF_FOUR) {
        DECODE(SH_ONE_OF_FOUR)
    } else {
        DECODE(SH_BITMAP)
    }
}

/* Products of `rows` decoded rows with `vectors` vectors of tokens over `columns` columns, added to sums. `width`: tokens
 * from one column of x to the next. */
INLINE void block(const float *weights, int rows, const float *x, int64_t width, int64_t columns, int vectors,
                  float *sums, int64_t stride) {
    vec acc[BLOCK_ROWS][2];
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < vectors; v++) acc[i][v] = v_zero();
    for (int64_t k = 0; k < columns; k++) {
        vec in[2];
        for (int v = 0; v < vectors; v++) in[v] = v_load(x + k * width + v * LANES);
        for (int i = 0; i < rows; i++) {
            vec weight = v_set(weights[i * SH_TILE_COLUMNS + k]);
            for (int v = 0; v < vectors; v++) acc[i][v] = v_fma(weight, in[v], acc[i][v]);
        }
    }
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < vectors; v++) {
            float *sum = sums + i * stride + v * LANES;
            v_store(sum, v_add(v_load(sum), acc[i][v]));
        }
}

/* A block of decoded rows times the tokens [t0, t1) of a panel that starts at column k. */
INLINE void block_tokens(const float *weights, int rows, const sh_work *work, int64_t all_columns, int64_t k,
                         int64_t columns, int64_t t0, int64_t t1, float *sums, int64_t stride) {
    for (int64_t token = t0; token < t1;) {
        int64_t vectors = sh_group_vectors(work->tokens - token, LANES), width = vectors * LANES;
        const float *x = work->lanes + all_columns * token + k * width;
        float *out = sums + token - t0;
        for (int64_t v = 0; v < vectors; v += 2) {
            if (vectors - v >= 2) block(weights, rows, x + v * LANES, width, columns, 2, out + v * LANES, stride);
            else block(weights, rows, x + v * LANES, width, columns, 1, out + v * LANES, stride);
        }
        token += width;
    }
}

/* Fetch what the next block decodes while this one is multiplied: memory would else wait for the multiplication. */
INLINE void fetch_rows(const cursor *cursors, int rows, int64_t bytes) {
    for (int i = 0; i < rows; i++)
        for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(cursors[i].p + line, 0, 2);
}

static void tile(const sh_matrix *m, const sh_work *work, int64_t first, int64_t last) {
#ifdef SH_OWN_BF16
    if (m->type == SH_BF16 && work->bfloat16 && tile_bf16(m, work, first, last)) return;
#endif
    float *weights = (float *)work->scratch, *sums = weights + SH_BLOCK_ROWS * SH_TILE_COLUMNS;
    int64_t words = words_of(m), step = SH_TILE_COLUMNS / SH_WORD;
    /* Where the next value lies is known without a look at it, unless codes or indices are counted. */
    int64_t ahead = m->type == SH_Q4 || m->layout == SH_INDEX16 ? 0 : m->total / (m->rows * words) * step * element_bytes(m->type) + 64;
    for (int64_t t0 = 0; t0 < work->tokens; t0 += SH_BAND_TOKENS) {
        int64_t t1 = t0 + SH_BAND_TOKENS < work->tokens ? t0 + SH_BAND_TOKENS : work->tokens;
        int64_t stride = (t1 - t0 + LANES - 1) / LANES * LANES + 16;
        for (int64_t r = first; r < last; r += SH_BAND_ROWS) {
            int rows = last - r < SH_BAND_ROWS ? (int)(last - r) : SH_BAND_ROWS;
            cursor cursors[SH_BAND_ROWS];
            for (int i = 0; i < rows; i++) {
                if (m->layout == SH_INDEX16) cursors[i] = (cursor){NULL, m->offsets[r + i], NULL};
                else cursors[i] = open_row(m, m->layout, m->type, r + i);
            }
            memset(sums, 0, (size_t)(rows * stride) * sizeof *sums);
            for (int64_t w0 = 0; w0 < words; w0 += step) {
                int64_t w1 = w0 + step < words ? w0 + step : words, k = w0 * SH_WORD;
                int64_t columns = w1 * SH_WORD < m->columns ? (w1 - w0) * SH_WORD : m->columns - k;
                for (int i = 0; i < rows;) {
                    int here = rows - i >= BLOCK_ROWS ? BLOCK_ROWS : rows - i >= 4 ? 4 : 1;
                    float *out = sums + i * stride;
                    for (int j = 0; j < here; j++)
                        decode_piece(m, r + i + j, &cursors[i + j], w0, w1, weights + j * SH_TILE_COLUMNS);
                    int coming = i + here < rows ? i + here : 0;
                    fetch_rows(cursors + coming, rows - coming < BLOCK_ROWS ? rows - coming : BLOCK_ROWS, ahead);
                    if (here == BLOCK_ROWS) block_tokens(weights, BLOCK_ROWS, work, m->columns, k, columns, t0, t1, out, stride);
                    else if (here == 4) block_tokens(weights, 4, work, m->columns, k, columns, t0, t1, out, stride);
                    else block_tokens(weights, 1, work, m->columns, k, columns, t0, t1, out, stride);
                    i += here;
                }
            }
            transpose(sums, stride, rows, t1 - t0, work->y + t0 * m->rows + r, m->rows);
        }
    }
}
