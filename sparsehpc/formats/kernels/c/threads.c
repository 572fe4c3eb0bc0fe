/* Preparing activations, splitting rows over threads, choosing a strategy. No vector instructions in here. */
#include "kernels.h"

#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

/* Weights times tokens below which waking other threads costs more than it saves. */
#define PARALLEL_WORK (1 << 15)

static float x_value(const void *x, int type, int64_t i) {
    if (type == SH_F32) return ((const float *)x)[i];
    uint16_t half = ((const uint16_t *)x)[i];
    return type == SH_BF16 ? sh_from_bf16(half) : sh_from_f16(half);
}

/* Row `token` of x in float32 with zeros behind the last column, and in bfloat16 where wanted. */
static void prepare_row(const void *x, int type, int64_t token, int64_t columns, int64_t padded, float *rows,
                        uint16_t *bfloat16) {
    int64_t start = token * columns;
    if (rows) {
        float *out = rows + token * padded;
        if (type == SH_F32) memcpy(out, (const float *)x + start, (size_t)columns * 4);
        else if (type == SH_BF16)
            for (int64_t k = 0; k < columns; k++) out[k] = sh_from_bf16(((const uint16_t *)x)[start + k]);
        else
            for (int64_t k = 0; k < columns; k++) out[k] = sh_from_f16(((const uint16_t *)x)[start + k]);
        memset(out + columns, 0, (size_t)(padded - columns) * 4);
    }
    if (bfloat16) {
        memcpy(bfloat16 + token * padded, (const uint16_t *)x + start, (size_t)columns * 2);
        memset(bfloat16 + token * padded + columns, 0, (size_t)(padded - columns) * 2);
    }
}

/* Columns first to last of x with the tokens of a group beside each other. */
static void prepare_lanes(const sh_kernels *isa, const void *x, int type, int64_t tokens, int64_t columns, int64_t first,
                          int64_t last, float *lanes) {
    for (int64_t token = 0; token < tokens;) {
        int64_t width = sh_group_vectors(tokens - token, isa->vector_lanes) * isa->vector_lanes;
        int64_t filled = tokens - token < width ? tokens - token : width;
        float *group = lanes + columns * token;
        if (type == SH_F32)
            isa->transpose((const float *)x + token * columns + first, columns, filled, last - first,
                           group + first * width, width);
        for (int64_t k = first; k < last; k++) {
            float *out = group + k * width;
            if (type != SH_F32)
                for (int64_t t = 0; t < filled; t++) out[t] = x_value(x, type, (token + t) * columns + k);
            for (int64_t t = filled; t < width; t++) out[t] = 0.0f;
        }
        token += width;
    }
}

static void write_rows(const float *from, void *y, int type, int64_t tokens, int64_t rows, int64_t first,
                       int64_t last) {
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t r = first; r < last; r++) {
            float value = from[t * rows + r];
            ((uint16_t *)y)[t * rows + r] = type == SH_BF16 ? sh_to_bf16(value) : sh_to_f16(value);
        }
}

/* Work of the rows before r, in stored weights; a mask word costs about as much as 24 of them. */
static int64_t work_before(const sh_matrix *m, int64_t r) {
    int64_t words = m->layout == SH_INDEX16 ? 1 : (m->columns + SH_WORD - 1) / SH_WORD;
    return (m->offsets ? m->offsets[r] : r * m->per_row) + r * words * 24;
}

int64_t sh_split(const sh_matrix *m, int part, int parts) {
    if (part == 0) return 0;
    if (part == parts) return m->rows;
    int64_t target = work_before(m, m->rows) / parts * part, low = 0, high = m->rows;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (work_before(m, middle) < target) low = middle + 1;
        else high = middle;
    }
    return low / SH_SPLIT_ROWS * SH_SPLIT_ROWS;
}

int sh_choose(const sh_kernels *isa, const sh_matrix *m, int x_type, int64_t tokens) {
    if (tokens <= SH_SMALL_TOKENS) return SH_SMALL;
    /* One multiply-add per stored weight and vector of tokens costs about 1.4 of a dense one, or 4 of a pair. */
    double density = (double)(m->type == SH_Q4 ? 2 * m->total : m->total) / ((double)m->rows * (double)m->columns);
    /* Half of a vector of tokens would be empty: decoding twice costs less while there is much to multiply. */
    if (tokens <= SH_SMALL_MOST && m->layout != SH_INDEX16 && (m->layout == SH_DENSE || density > 0.25)) return SH_SMALL;
    if (m->layout == SH_DENSE) return SH_TILE;
    if (m->layout == SH_INDEX16) return SH_LANES;
    int pairs = isa->bf16_pairs && m->type == SH_BF16 && x_type == SH_BF16 && m->layout != SH_ONE_OF_FOUR;
    /* Many tokens are read from the second-level cache again for every piece of a row, not for every block. */
    return density > (pairs ? 0.25 : tokens > 64 ? 0.68 : 0.75) ? SH_TILE : SH_LANES;
}

/* Rows of `small` between passes over the tokens: the second finds their weights in the cache. */
#define SMALL_BAND 64

static void small_in_passes(const sh_kernels *isa, const sh_matrix *m, const sh_work *work, int64_t first, int64_t last) {
    int64_t passes = (work->tokens + SH_SMALL_TOKENS - 1) / SH_SMALL_TOKENS, each = (work->tokens + passes - 1) / passes;
    for (int64_t r = first; r < last; r += SMALL_BAND)
        for (int64_t t = 0; t < work->tokens; t += each) {
            sh_work pass = *work;
            pass.tokens = work->tokens - t < each ? work->tokens - t : each;
            if (pass.rows) pass.rows += t * work->padded_columns;
            if (pass.bfloat16) pass.bfloat16 += t * work->padded_columns;
            pass.y += t * m->rows;
            isa->small(m, &pass, r, r + SMALL_BAND < last ? r + SMALL_BAND : last);
        }
}

static void *room(int64_t bytes) { return aligned_alloc(64, (size_t)((bytes + 127) / 64 * 64)); }

/* An empty array has no address. */
static sh_matrix with_addresses(const sh_matrix *given) {
    static const uint64_t nothing[16];
    sh_matrix matrix = *given;
    if (!matrix.values) matrix.values = nothing;
    if (!matrix.indices) matrix.indices = (const uint16_t *)nothing;
    return matrix;
}

int sh_linear(const sh_kernels *isa, const sh_matrix *given, const void *x, int x_type, int64_t tokens, void *y,
              int threads, int strategy) {
    const sh_matrix matrix = with_addresses(given), *m = &matrix;
    int64_t columns = m->columns, padded = (columns + SH_WORD - 1) / SH_WORD * SH_WORD;
    if (strategy == SH_AUTO) strategy = sh_choose(isa, m, x_type, tokens);
    if (strategy == SH_SMALL && tokens > SH_SMALL_MOST) return -1;
    if (threads < 1 || m->rows * columns * tokens < PARALLEL_WORK) threads = 1;
#ifndef _OPENMP
    threads = 1;
#endif
    /* These do not decode to pairs. */
    int scattered = m->layout == SH_ONE_OF_FOUR || m->layout == SH_INDEX16;
    int pairs = isa->bf16_pairs && x_type == SH_BF16 && m->type == SH_BF16 &&
                (strategy == SH_SMALL || (strategy == SH_TILE && !scattered));
    int in_lanes = strategy == SH_LANES || (strategy == SH_TILE && !pairs);
    int direct = strategy == SH_SMALL && x_type == SH_F32 && padded == columns;
    int wide = strategy == SH_SMALL && !direct && (!pairs || scattered);
    int64_t lanes_tokens = (tokens + isa->vector_lanes - 1) / isa->vector_lanes * isa->vector_lanes;
    int64_t scratch_bytes = 0;
    if (strategy == SH_LANES) scratch_bytes = SH_PANEL_ROWS * (lanes_tokens * 4 + SH_PANEL_ROOM * 6);
    else if (pairs && strategy == SH_TILE) scratch_bytes = SH_PAIR_ROWS * (SH_PAIR_COLUMNS * 2 + tokens * 4);
    else if (strategy == SH_TILE) scratch_bytes = SH_BLOCK_ROWS * SH_TILE_COLUMNS * 4 + SH_BAND_BYTES;
    else if (isa->splits_input && tokens == 1 && m->mask && m->type != SH_Q4 && !pairs) scratch_bytes = padded * 4;
    scratch_bytes = (scratch_bytes + 63) / 64 * 64;
    float *rows = wide ? room(tokens * padded * 4) : NULL;
    uint16_t *bfloat16 = pairs ? room(tokens * padded * 2) : NULL;
    float *lanes = in_lanes ? room(lanes_tokens * columns * 4) : NULL;
    float *out = x_type == SH_F32 ? y : room(tokens * m->rows * 4);
    char *scratch = scratch_bytes ? room(scratch_bytes * threads) : NULL;
    int failed = (wide && !rows) || (pairs && !bfloat16) ||
                 (in_lanes && !lanes) || !out || (scratch_bytes && !scratch);
    if (!failed) {
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
#endif
        {
            int part = 0, parts = 1;
#ifdef _OPENMP
            part = omp_get_thread_num();
            parts = omp_get_num_threads();
#endif
            if (lanes) {
                int64_t first = columns * part / parts, last = columns * (part + 1) / parts;
                prepare_lanes(isa, x, x_type, tokens, columns, first, last, lanes);
            } else if (rows || bfloat16) {
                for (int64_t t = tokens * part / parts; t < tokens * (part + 1) / parts; t++)
                    prepare_row(x, x_type, t, columns, padded, rows, bfloat16);
            }
#ifdef _OPENMP
            if (lanes || rows || bfloat16) {
#pragma omp barrier
            }
#endif
            sh_work work = {.rows = direct ? x : rows,
                            .bfloat16 = bfloat16,
                            .lanes = lanes,
                            .tokens = tokens,
                            .padded_columns = padded,
                            .y = out,
                            .scratch = scratch ? scratch + scratch_bytes * part : NULL};
            int64_t first = sh_split(m, part, parts), last = sh_split(m, part + 1, parts);
            if (first < last) {
                if (strategy == SH_SMALL && tokens > SH_SMALL_TOKENS) small_in_passes(isa, m, &work, first, last);
                else if (strategy == SH_SMALL) isa->small(m, &work, first, last);
                else if (strategy == SH_LANES) isa->lanes(m, &work, first, last);
                else isa->tile(m, &work, first, last);
                if (x_type != SH_F32) write_rows(out, y, x_type, tokens, m->rows, first, last);
            }
        }
    }
    free(rows);
    free(bfloat16);
    free(lanes);
    if (x_type != SH_F32) free(out);
    free(scratch);
    return failed ? -1 : 0;
}

/* Two words beside each other: every processor of 64 bits has such vectors, and reads two of them a cycle. */
typedef uint64_t pair __attribute__((vector_size(16)));

/* 512 bytes a round in eight sums that do not wait for each other. */
static uint64_t read_part(const char *p, int64_t rounds) {
    pair sums[8] = {{0, 0}};
    for (int64_t n = 0; n < rounds; n++, p += 512) {
        for (int line = 0; line < 512; line += 64) __builtin_prefetch(p + 8192 + line, 0, 2);
        for (int i = 0; i < 32; i++) {
            pair next;
            memcpy(&next, p + 16 * i, sizeof next);
            sums[i % 8] ^= next;
        }
    }
    for (int i = 1; i < 8; i++) sums[0] ^= sums[i];
    return sums[0][0] ^ sums[0][1];
}

uint64_t sh_read(const void *data, int64_t bytes, int threads) {
    const char *start = data;
    int64_t rounds = bytes / 512;
    uint64_t sum = 0;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) reduction(^ : sum)
#endif
    {
        int part = 0, parts = 1;
#ifdef _OPENMP
        part = omp_get_thread_num();
        parts = omp_get_num_threads();
#endif
        int64_t first = rounds * part / parts, last = rounds * (part + 1) / parts;
        sum ^= read_part(start + first * 512, last - first);
    }
    (void)threads;
    for (int64_t i = rounds * 512; i + 8 <= bytes; i += 8) {
        uint64_t word;
        memcpy(&word, start + i, sizeof word);
        sum ^= word;
    }
    return sum;
}
