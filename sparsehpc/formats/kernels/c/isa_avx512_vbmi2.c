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

OP void list_columns(uint16_t *out, uint64_t word, uint32_t base) {
    static const uint8_t lane[64] __attribute__((aligned(64))) = {
        0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21,
        22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43,
        44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63};
    __m512i packed = _mm512_maskz_compress_epi8(word, _mm512_load_si512(lane));
    __m512i start = _mm512_set1_epi16((short)base);
    __m512i low = _mm512_cvtepu8_epi16(_mm512_castsi512_si256(packed));
    _mm512_storeu_si512(out, _mm512_add_epi16(low, start));
    __m512i high = _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(packed, 1));
    _mm512_storeu_si512(out + 32, _mm512_add_epi16(high, start));
}

/* 64 weights of 4-bit codes: spread the codes of 33 bytes to 64 bytes, expand them by the mask, and look each up in
 * its block's sixteen weights. */
#define SH_OWN_Q4
OP void decode_q4_word(const uint8_t *codes, int64_t total, int64_t code, uint64_t word, const uint8_t *grid, int64_t w,
                       int64_t blocks, int dense, vec out[4]) {
    static const uint8_t quads[64] __attribute__((aligned(64))) = {
        0,  1,  2,  3,  4,  5,  6,  7,  4,  5,  6,  7,  8,  9,  10, 11, 8,  9,  10, 11, 12, 13,
        14, 15, 12, 13, 14, 15, 16, 17, 18, 19, 16, 17, 18, 19, 20, 21, 22, 23, 20, 21, 22, 23,
        24, 25, 26, 27, 24, 25, 26, 27, 28, 29, 30, 31, 28, 29, 30, 31, 32, 33, 34, 35};
    int64_t byte = code >> 1, count = dense ? 64 : __builtin_popcountll(word);
    int64_t bytes = ((code & 1) + count + 1) >> 1;
    if (dense && byte + bytes > total) bytes = total - byte;
    __m512i raw = _mm512_maskz_loadu_epi8((1ull << bytes) - 1, codes + byte);
    __builtin_prefetch(codes + byte + 2048, 0, 3);
    raw = _mm512_permutexvar_epi8(_mm512_load_si512(quads), raw);
    __m512i shifts = _mm512_set1_epi64(0x1c1814100c080400ll);
    if (!dense) shifts = _mm512_add_epi8(shifts, _mm512_set1_epi8((char)(4 * (code & 1))));
    __m512i spread = _mm512_and_si512(_mm512_multishift_epi64_epi8(shifts, raw), _mm512_set1_epi8(15));
    if (!dense) spread = _mm512_maskz_expand_epi8(word, spread);
    uint16_t halves[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    memcpy(halves, grid + 8 * w, blocks - 2 * w >= 2 ? 8 : 4);
    __m128 ends = _mm_cvtph_ps(_mm_loadl_epi64((const __m128i *)(const void *)halves));
    const __m512 steps = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512 first = _mm512_fmadd_ps(steps, _mm512_broadcastss_ps(ends), _mm512_broadcastss_ps(_mm_movehdup_ps(ends)));
    __m128 rest = _mm_movehl_ps(ends, ends);
    __m512 second = _mm512_fmadd_ps(steps, _mm512_broadcastss_ps(rest), _mm512_broadcastss_ps(_mm_movehdup_ps(rest)));
    __m512i c0 = _mm512_cvtepu8_epi32(_mm512_castsi512_si128(spread));
    __m512i c1 = _mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32(spread, 1));
    __m512i c2 = _mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32(spread, 2));
    __m512i c3 = _mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32(spread, 3));
    out[0] = _mm512_maskz_permutexvar_ps((__mmask16)word, c0, first);
    out[1] = _mm512_maskz_permutexvar_ps((__mmask16)(word >> 16), c1, first);
    out[2] = _mm512_maskz_permutexvar_ps((__mmask16)(word >> 32), c2, second);
    out[3] = _mm512_maskz_permutexvar_ps((__mmask16)(word >> 48), c3, second);
}

#define SH_OWN_SMALL_BF16
static int small_bf16(const sh_matrix *m, const sh_work *work, int64_t first, int64_t last);

#include "template.h"

/* bfloat16 weights times bfloat16 activations, summed in float32 by the pair instruction. */
INLINE void bf16_row(const sh_matrix *m, const sh_work *work, int64_t r, int layout, int tokens, int careful) {
    __m512 sums[SH_SMALL_TOKENS][2];
    for (int t = 0; t < tokens; t++) sums[t][0] = sums[t][1] = _mm512_setzero_ps();
    cursor c = open_row(m, layout, SH_BF16, r);
    int64_t words = words_of(m);
    for (int64_t w = 0; w < words; w++) {
        uint64_t word = word_of(m, layout, r, w);
        const char *p = c.p;
        c.p += __builtin_popcountll(word) * 2;
        uint16_t copy[SH_WORD + 32];
        if (careful || (layout == SH_DENSE && is_careful(m, layout, SH_BF16, r, w))) {
            memset(copy, 0, sizeof copy);
            memcpy(copy, p, (size_t)(c.p - p));
            p = (const char *)copy;
        } else {
            __builtin_prefetch(p + 4096, 0, 3);
            __builtin_prefetch(p + 4160, 0, 3);
        }
        __m512i low = _mm512_loadu_si512(p), high;
        if (layout == SH_DENSE) high = _mm512_loadu_si512(p + 64);
        else {
            high = _mm512_loadu_si512(p + 2 * __builtin_popcountll(word & 0xffffffffull));
            low = _mm512_maskz_expand_epi16((__mmask32)word, low);
            high = _mm512_maskz_expand_epi16((__mmask32)(word >> 32), high);
        }
        const uint16_t *x = work->bfloat16 + w * SH_WORD;
        for (int t = 0; t < tokens; t++) {
            __m512i x0 = _mm512_loadu_si512(x + t * work->padded_columns);
            __m512i x1 = _mm512_loadu_si512(x + t * work->padded_columns + 32);
            sums[t][0] = _mm512_dpbf16_ps(sums[t][0], (__m512bh)low, (__m512bh)x0);
            sums[t][1] = _mm512_dpbf16_ps(sums[t][1], (__m512bh)high, (__m512bh)x1);
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

const sh_kernels sh_avx512_vbmi2 = {"avx512-vbmi2", LANES, small, lanes, tile};

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
