/* AVX-512 with VBMI, VBMI2 and BF16 (Zen 4, Sapphire Rapids and later): expansion of bytes and of bfloat16, and
 * products of bfloat16 pairs. */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx512bf16,avx2,fma,f16c,bmi,bmi2,popcnt"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx512bf16,avx2,fma,f16c,bmi,bmi2,popcnt")
#endif
#include "kernels.h"

#include <string.h>

#include "avx512.h"

static const uint8_t lane_numbers[64] __attribute__((aligned(64))) = {
    0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21,
    22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43,
    44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63};

OP void list_columns(uint16_t *out, uint64_t word, uint32_t base) {
    __m512i packed = _mm512_maskz_compress_epi8(word, _mm512_load_si512(lane_numbers));
    __m512i start = _mm512_set1_epi16((short)base);
    __m512i low = _mm512_cvtepu8_epi16(_mm512_castsi512_si256(packed));
    _mm512_storeu_si512(out, _mm512_add_epi16(low, start));
    __m512i high = _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(packed, 1));
    _mm512_storeu_si512(out + 32, _mm512_add_epi16(high, start));
}

OP __m512i expand_epi8(__m512i a, __mmask64 bits) {
    __m512i out = _mm512_setzero_si512();
    __asm__("vpexpandb %2, %0%{%1%}%{z%}" : "+v"(out) : "Yk"(bits), "v"(a));
    return out;
}
OP __m512i expand_epi16(__m512i a, __mmask32 bits) {
    __m512i out = _mm512_setzero_si512();
    __asm__("vpexpandw %2, %0%{%1%}%{z%}" : "+v"(out) : "Yk"(bits), "v"(a));
    return out;
}

/* 64 weights of 4-bit codes as four vectors. Every code is brought into the low half of a byte of its own, the bytes are
 * expanded by the mask and dealt out so that the codes of vector g are byte g of its lanes; then they are looked up
 * among their block's sixteen weights. The look-up reads four bits of a lane: whatever lies above stays.
 * `ends`: scale and minimum of both blocks. `bytes`: how many may be read, 64 if there is nothing to mind. */
OP void q4_word(const uint8_t *codes, int odd, int64_t bytes, uint64_t word, const float *ends, int dense, vec out[4]) {
    static const uint8_t quads[64] __attribute__((aligned(64))) = {
        0,  1,  2,  3,  4,  5,  6,  7,  4,  5,  6,  7,  8,  9,  10, 11, 8,  9,  10, 11, 12, 13,
        14, 15, 12, 13, 14, 15, 16, 17, 18, 19, 16, 17, 18, 19, 20, 21, 22, 23, 20, 21, 22, 23,
        24, 25, 26, 27, 24, 25, 26, 27, 28, 29, 30, 31, 28, 29, 30, 31, 32, 33, 34, 35};
    static const uint64_t shifts[2] = {0x1c1814100c080400ull, 0x201c1814100c0804ull};
    static const uint8_t deal[64] __attribute__((aligned(64))) = {
        0,  16, 32, 48, 1,  17, 33, 49, 2,  18, 34, 50, 3,  19, 35, 51, 4,  20, 36, 52, 5,  21,
        37, 53, 6,  22, 38, 54, 7,  23, 39, 55, 8,  24, 40, 56, 9,  25, 41, 57, 10, 26, 42, 58,
        11, 27, 43, 59, 12, 28, 44, 60, 13, 29, 45, 61, 14, 30, 46, 62, 15, 31, 47, 63};
    static const uint8_t halves[64] __attribute__((aligned(64))) = {
        0,  8,  16, 24, 0,  8,  16, 24, 1,  9,  17, 25, 1,  9,  17, 25, 2,  10, 18, 26, 2,  10,
        18, 26, 3,  11, 19, 27, 3,  11, 19, 27, 4,  12, 20, 28, 4,  12, 20, 28, 5,  13, 21, 29,
        5,  13, 21, 29, 6,  14, 22, 30, 6,  14, 22, 30, 7,  15, 23, 31, 7,  15, 23, 31};
    const __m512 steps = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i raw = bytes >= 64 ? _mm512_loadu_si512(codes) : _mm512_maskz_loadu_epi8((1ull << bytes) - 1, codes);
    const __m512 first = _mm512_fmadd_ps(steps, _mm512_set1_ps(ends[0]), _mm512_set1_ps(ends[1]));
    const __m512 second = _mm512_fmadd_ps(steps, _mm512_set1_ps(ends[2]), _mm512_set1_ps(ends[3]));
    if (dense) {
        const __m512i nibble = _mm512_set1_epi64(4ll << 32);
        raw = _mm512_permutexvar_epi8(_mm512_load_si512(halves), raw);
        out[0] = _mm512_permutexvar_ps(_mm512_srlv_epi32(raw, nibble), first);
        out[1] = _mm512_permutexvar_ps(_mm512_srlv_epi32(raw, _mm512_add_epi32(nibble, _mm512_set1_epi32(8))), first);
        out[2] = _mm512_permutexvar_ps(_mm512_srlv_epi32(raw, _mm512_add_epi32(nibble, _mm512_set1_epi32(16))), second);
        out[3] = _mm512_permutexvar_ps(_mm512_srlv_epi32(raw, _mm512_add_epi32(nibble, _mm512_set1_epi32(24))), second);
    } else {
        raw = _mm512_permutexvar_epi8(_mm512_load_si512(quads), raw);
        raw = _mm512_multishift_epi64_epi8(_mm512_set1_epi64((int64_t)shifts[odd]), raw);
        raw = _mm512_permutexvar_epi8(_mm512_load_si512(deal), expand_epi8(raw, word));
        out[0] = _mm512_maskz_permutexvar_ps((__mmask16)word, raw, first);
        out[1] = _mm512_maskz_permutexvar_ps((__mmask16)(word >> 16), _mm512_srli_epi32(raw, 8), first);
        out[2] = _mm512_maskz_permutexvar_ps((__mmask16)(word >> 32), _mm512_srli_epi32(raw, 16), second);
        out[3] = _mm512_maskz_permutexvar_ps((__mmask16)(word >> 48), _mm512_srli_epi32(raw, 24), second);
    }
}

/* Word w of a row; nothing beyond `total` bytes is read. */
OP void decode_q4_word(const uint8_t *codes, int64_t total, int64_t code, uint64_t word, const uint8_t *grid, int64_t w,
                       int64_t blocks, int dense, vec out[4]) {
    int64_t byte = code >> 1;
    uint16_t halves[8] = {0};
    float ends[8];
    memcpy(halves, grid + 8 * w, blocks - 2 * w >= 2 ? 8 : 4);
    _mm256_storeu_ps(ends, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)halves)));
    __builtin_prefetch(codes + byte + 2048, 0, 2);
    q4_word(codes + byte, (int)(code & 1), total - byte, word, ends, dense, out);
}

#define SH_OWN_Q4
static void small_q4(const sh_matrix *m, const sh_work *work, int64_t first, int64_t last);
#define SH_OWN_BF16
static int small_bf16(const sh_matrix *m, const sh_work *work, int64_t first, int64_t last);
static int tile_bf16(const sh_matrix *m, const sh_work *work, int64_t first, int64_t last);
#define SH_OWN_FEW
static void small_mixed(const sh_matrix *m, const sh_work *work, int64_t first, int64_t last);
static void small_quarter(const sh_matrix *m, const sh_work *work, int64_t first, int64_t last);

#include "template.h"

#include "token.h"

/* ---- 4-bit codes ---------------------------------------------------------------------------------------------- */

/* One row; `ends`: scale and minimum of its blocks in float32, whole words of them. */
INLINE void q4_row(const sh_matrix *m, const sh_work *work, int64_t r, int layout, int tokens, int careful,
                   const float *ends) {
    vec sums[SH_SMALL_TOKENS][4];
    for (int t = 0; t < tokens; t++)
        for (int g = 0; g < 4; g++) sums[t][g] = v_zero();
    const uint8_t *codes = (const uint8_t *)m->values;
    int64_t words = words_of(m), code = 2 * row_start(m, layout, r);
    for (int64_t w = 0; w < words; w++) {
        vec weights[4];
        uint64_t word = word_of(m, layout, r, w);
        int64_t byte = code >> 1;
        __builtin_prefetch(codes + byte + 4096, 0, 2);
        q4_word(codes + byte, (int)(code & 1), careful ? m->total - byte : 64, word, ends + 4 * w, layout == SH_DENSE, weights);
        code += layout == SH_DENSE ? SH_WORD : __builtin_popcountll(word);
        for (int g = 0; g < 4; g++)
            for (int t = 0; t < tokens; t++)
                sums[t][g] = v_fma(weights[g], v_load(work->rows + t * work->padded_columns + w * SH_WORD + g * LANES),
                                   sums[t][g]);
    }
    for (int t = 0; t < tokens; t++)
        work->y[t * m->rows + r] = v_sum(v_add(v_add(sums[t][0], sums[t][1]), v_add(sums[t][2], sums[t][3])));
}

INLINE void q4_rows(const sh_matrix *m, const sh_work *work, int64_t first, int64_t last, int layout, int tokens) {
    float ends[SH_MAX_COLUMNS / 16];
    int64_t halves = (m->columns + 31) / 32 * 2;
    for (int64_t r = first; r < last; r++) {
        widen((const char *)m->scales + r * halves * 2, SH_F16, 1.0f, halves, ends);
        if (row_start(m, layout, r + 1) + 64 > m->total) q4_row(m, work, r, layout, tokens, 1, ends);
        else q4_row(m, work, r, layout, tokens, 0, ends);
    }
}

#define Q4(layout)                                                                                                     \
    switch (work->tokens) {                                                                                            \
    case 1: q4_rows(m, work, first, last, layout, 1); break;                                                           \
    case 2: q4_rows(m, work, first, last, layout, 2); break;                                                           \
    case 3: q4_rows(m, work, first, last, layout, 3); break;                                                           \
    default: q4_rows(m, work, first, last, layout, 4); break;                                                          \
    }

static void small_q4(const sh_matrix *m, const sh_work *work, int64_t first, int64_t last) {
    if (m->layout == SH_DENSE) Q4(SH_DENSE)
    else Q4(SH_BITMAP)
}

/* ---- bfloat16 weights times bfloat16 activations, summed in float32 by the pair instruction ------------------- */

/* Word w of a row as 64 bfloat16 values in place. */
INLINE void bf16_word(int layout, cursor *c, uint64_t word, int careful, __m512i out[2]) {
    const char *p = c->p;
    c->p += __builtin_popcountll(word) * 2;
    uint16_t copy[SH_WORD + 32];
    if (careful) {
        memset(copy, 0, sizeof copy);
        memcpy(copy, p, (size_t)(c->p - p));
        p = (const char *)copy;
    } else {
        const char *ahead = p + (layout == SH_DENSE ? 4096 : 16384);
        __builtin_prefetch(ahead, 0, 2);
        __builtin_prefetch(ahead + 64, 0, 2);
    }
    out[0] = _mm512_loadu_si512(p);
    if (layout == SH_DENSE) {
        out[1] = _mm512_loadu_si512(p + 64);
    } else {
        out[1] = _mm512_loadu_si512(p + 2 * __builtin_popcountll(word & 0xffffffffull));
        out[0] = expand_epi16(out[0], (__mmask32)word);
        out[1] = expand_epi16(out[1], (__mmask32)(word >> 32));
    }
}

INLINE __m512 pairs(__m512 sum, __m512i a, const uint16_t *b) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)_mm512_loadu_si512(b));
}

INLINE void bf16_row(const sh_matrix *m, const sh_work *work, int64_t r, int layout, int tokens, int careful) {
    __m512 sums[SH_SMALL_TOKENS][2];
    for (int t = 0; t < tokens; t++) sums[t][0] = sums[t][1] = _mm512_setzero_ps();
    cursor c = open_row(m, layout, SH_BF16, r);
    int64_t words = words_of(m);
    for (int64_t w = 0; w < words; w++) {
        __m512i weights[2];
        bf16_word(layout, &c, word_of(m, layout, r, w),
                  careful || (layout == SH_DENSE && is_careful(m, layout, SH_BF16, r, w)), weights);
        const uint16_t *x = work->bfloat16 + w * SH_WORD;
        for (int t = 0; t < tokens; t++) {
            sums[t][0] = pairs(sums[t][0], weights[0], x + t * work->padded_columns);
            sums[t][1] = pairs(sums[t][1], weights[1], x + t * work->padded_columns + 32);
        }
    }
    for (int t = 0; t < tokens; t++)
        work->y[t * m->rows + r] = _mm512_reduce_add_ps(_mm512_add_ps(sums[t][0], sums[t][1]));
}

INLINE void bf16_rows(const sh_matrix *m, const sh_work *work, int64_t first, int64_t last, int layout, int tokens) {
    for (int64_t r = first; r < last; r++) {
        if (layout != SH_DENSE && is_careful(m, layout, SH_BF16, r, 0)) bf16_row(m, work, r, layout, tokens, 1);
        else bf16_row(m, work, r, layout, tokens, 0);
    }
}

#define BF16(layout)                                                                                                   \
    switch (work->tokens) {                                                                                            \
    case 1: bf16_rows(m, work, first, last, layout, 1); return 1;                                                      \
    case 2: bf16_rows(m, work, first, last, layout, 2); return 1;                                                      \
    case 3: bf16_rows(m, work, first, last, layout, 3); return 1;                                                      \
    default: bf16_rows(m, work, first, last, layout, 4); return 1;                                                     \
    }

static int small_bf16(const sh_matrix *m, const sh_work *work, int64_t first, int64_t last) {
    if (m->layout == SH_DENSE) BF16(SH_DENSE)
    if (m->layout == SH_BITMAP || m->layout == SH_KEEP) BF16(SH_BITMAP)
    return 0;
}

INLINE void bf16_decode(const sh_matrix *m, int layout, int64_t r, cursor *c, int64_t w0, int64_t w1, uint16_t *out) {
    for (int64_t w = w0; w < w1; w++, out += SH_WORD) {
        __m512i weights[2];
        bf16_word(layout, c, word_of(m, layout, r, w), is_careful(m, layout, SH_BF16, r, w), weights);
        _mm512_storeu_si512(out, weights[0]);
        _mm512_storeu_si512(out + 32, weights[1]);
    }
}

/* Sums of sixteen vectors as one: three instructions a pair instead of a reduction each. */
OP vec v_sum16(const vec v[16]) {
    vec a[8], b[4], c[2];
    for (int i = 0; i < 8; i++)
        a[i] = _mm512_add_ps(_mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]));
    for (int i = 0; i < 4; i++) {
        __m512d x = _mm512_castps_pd(a[2 * i]), y = _mm512_castps_pd(a[2 * i + 1]);
        b[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
    }
    for (int i = 0; i < 2; i++)
        c[i] = _mm512_add_ps(_mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0x44),
                             _mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0xee));
    return _mm512_add_ps(_mm512_shuffle_f32x4(c[0], c[1], 0x88), _mm512_shuffle_f32x4(c[0], c[1], 0xdd));
}

INLINE void bf16_block(const uint16_t *weights, int rows, const uint16_t *x, int64_t stride, int tokens,
                       int64_t columns, float sums[][SH_PAIR_ROWS]) {
    __m512 acc[4 * SH_PAIR_ROWS];
    for (int t = 0; t < tokens; t++)
        for (int i = 0; i < rows; i++) acc[t * rows + i] = _mm512_setzero_ps();
    for (int64_t k = 0; k < columns; k += 32) {
        __m512i w[SH_PAIR_ROWS];
        for (int i = 0; i < rows; i++) w[i] = _mm512_loadu_si512(weights + i * SH_PAIR_COLUMNS + k);
        for (int t = 0; t < tokens; t++)
            for (int i = 0; i < rows; i++) acc[t * rows + i] = pairs(acc[t * rows + i], w[i], x + t * stride + k);
    }
    if (rows == SH_PAIR_ROWS && tokens == 4) {
        v_store(sums[0], v_add(v_load(sums[0]), v_sum16(acc)));
        return;
    }
    for (int t = 0; t < tokens; t++)
        for (int i = 0; i < rows; i++) sums[t][i] += _mm512_reduce_add_ps(acc[t * rows + i]);
}

static int tile_bf16(const sh_matrix *m, const sh_work *work, int64_t first, int64_t last) {
    if (m->layout != SH_DENSE && m->layout != SH_BITMAP && m->layout != SH_KEEP) return 0;
    uint16_t *weights = (uint16_t *)work->scratch;
    float(*sums)[SH_PAIR_ROWS] = (float(*)[SH_PAIR_ROWS])(void *)(weights + SH_PAIR_ROWS * SH_PAIR_COLUMNS);
    int64_t words = words_of(m), step = SH_PAIR_COLUMNS / SH_WORD;
    for (int64_t r = first; r < last; r += SH_PAIR_ROWS) {
        int rows = last - r < SH_PAIR_ROWS ? (int)(last - r) : SH_PAIR_ROWS;
        cursor cursors[SH_PAIR_ROWS];
        for (int i = 0; i < rows; i++) cursors[i] = open_row(m, m->layout, SH_BF16, r + i);
        memset(sums, 0, (size_t)work->tokens * sizeof *sums);
        for (int64_t w0 = 0; w0 < words; w0 += step) {
            int64_t w1 = w0 + step < words ? w0 + step : words, columns = (w1 - w0) * SH_WORD;
            for (int i = 0; i < rows; i++) {
                uint16_t *out = weights + i * SH_PAIR_COLUMNS;
                if (m->layout == SH_DENSE) bf16_decode(m, SH_DENSE, r + i, &cursors[i], w0, w1, out);
                else bf16_decode(m, SH_BITMAP, r + i, &cursors[i], w0, w1, out);
            }
            for (int64_t t = 0; t < work->tokens; t += 4) {
                const uint16_t *x = work->bfloat16 + t * work->padded_columns + w0 * SH_WORD;
                int tokens = work->tokens - t < 4 ? (int)(work->tokens - t) : 4;
                if (rows == SH_PAIR_ROWS && tokens == 4) {
                    bf16_block(weights, SH_PAIR_ROWS, x, work->padded_columns, 4, columns, sums + t);
                    continue;
                }
                for (int i = 0; i < rows; i++)
                    for (int s = 0; s < tokens; s++)
                        bf16_block(weights + i * SH_PAIR_COLUMNS, 1, x + s * work->padded_columns,
                                   work->padded_columns, 1, columns, (float(*)[SH_PAIR_ROWS])(void *)(&sums[t + s][i]));
            }
        }
        for (int64_t t = 0; t < work->tokens; t++)
            for (int i = 0; i < rows; i++) work->y[t * m->rows + r + i] = sums[t][i];
    }
    return 1;
}

#include "few.h"
#include "quarter.h"

const sh_kernels sh_avx512_vbmi2 = {"avx512-vbmi2", LANES, 1, 1, small, lanes, tile, transpose, normalise, rotate, attend, gate_up};

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
