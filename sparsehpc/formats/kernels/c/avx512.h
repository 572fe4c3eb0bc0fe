/* AVX-512 operations that both AVX-512 versions share. */
#include <immintrin.h>

#define LANES 16
#define BLOCK_ROWS 12
typedef __m512 vec;
#define OP static inline __attribute__((always_inline))

#include "look.h"

OP vec v_set(float a) { return _mm512_set1_ps(a); }
OP vec v_zero(void) { return _mm512_setzero_ps(); }
OP vec v_load(const float *p) { return _mm512_loadu_ps(p); }
OP void v_store(float *p, vec a) { _mm512_storeu_ps(p, a); }
OP vec v_add(vec a, vec b) { return _mm512_add_ps(a, b); }
OP vec v_fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
OP float v_sum(vec a) { return _mm512_reduce_add_ps(a); }
OP vec v_load_bf16(const uint16_t *p) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
OP vec v_load_f16(const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}
OP vec look(const uint16_t *indices, const float *x) {
    return _mm512_insertf32x8(_mm512_castps256_ps512(look8(indices, x)), look8(indices + 8, x), 1);
}
/* Rows of sparse weights are short: what is left over is one masked step, not a loop of unknown length. */
#define SH_MASKED_REST
OP float rest_of_row(const char *values, int type, const uint16_t *indices, int64_t left, const float *x, vec sum) {
    const __mmask16 here = (__mmask16)((1u << left) - 1);
    uint16_t few[16], halves[16]; /* the first column where there is none: read, but not added */
    _mm256_storeu_si256((__m256i *)(void *)few, _mm256_maskz_loadu_epi16(here, indices));
    if (type != SH_F32) _mm256_storeu_si256((__m256i *)(void *)halves, _mm256_maskz_loadu_epi16(here, values));
    vec weights = type == SH_F32    ? _mm512_maskz_loadu_ps(here, values)
                  : type == SH_BF16 ? v_load_bf16(halves)
                                    : v_load_f16(halves);
    return v_sum(_mm512_mask3_fmadd_ps(weights, look(few, x), sum, here));
}
OP vec v_load_i8(const int8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)));
}
/* The low sixteen bits. Compilers would move all 64 bits of a word, which takes twice as long, and shift. */
OP __mmask16 mask16(uint32_t bits) {
    __mmask16 mask;
    __asm__("kmovw %1, %0" : "=k"(mask) : "r"(bits));
    return mask;
}
/* Zen 4's expansions wait for the old content of the result register although they zero what they do not fill. Written
 * so, the register holds a fresh zero, which costs nothing, and one expansion does not wait for the last. */
OP vec v_expand(vec a, uint32_t bits) {
    vec out = _mm512_setzero_ps();
    __asm__("vexpandps %2, %0%{%1%}%{z%}" : "+v"(out) : "Yk"(mask16(bits)), "v"(a));
    return out;
}
OP void v_pack(float *out, vec a, uint32_t bits) {
    _mm512_storeu_ps(out, _mm512_maskz_compress_ps((__mmask16)bits, a));
}

/* A word has 64 columns, so that two comparisons see all that can be below its end. */
OP int64_t count_below(const uint16_t *columns, int64_t left, uint32_t bound) {
    if (bound > 0xffff) return left; /* the last word of all */
    const __m512i limit = _mm512_set1_epi16((short)bound);
    const __mmask32 low = left >= 32 ? 0xffffffffu : (1u << left) - 1;
    const __mmask32 high = left >= 64 ? 0xffffffffu : left > 32 ? (1u << (left - 32)) - 1 : 0;
    const __m512i first = _mm512_maskz_loadu_epi16(low, columns), second = _mm512_maskz_loadu_epi16(high, columns + 32);
    return __builtin_popcount(_mm512_mask_cmplt_epu16_mask(low, first, limit)) +
           __builtin_popcount(_mm512_mask_cmplt_epu16_mask(high, second, limit));
}

/* Pairs of 4-byte, 8-byte and 16-byte lanes change places, then quarters. */
OP void transpose_block(const float *in, int64_t in_stride, float *out, int64_t out_stride) {
    __m512 a[16], b[16];
    for (int i = 0; i < 16; i++) a[i] = _mm512_loadu_ps(in + i * in_stride);
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int h = 0; h < 2; h++) {
            __m512d low = _mm512_castps_pd(b[i + h]), high = _mm512_castps_pd(b[i + h + 2]);
            a[i + 2 * h] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
            a[i + 2 * h + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
        }
    for (int h = 0; h < 4; h++) { /* columns h, h + 4, h + 8, h + 12 */
        __m512 even = _mm512_shuffle_f32x4(a[h], a[h + 4], 0x88), odd = _mm512_shuffle_f32x4(a[h], a[h + 4], 0xdd);
        __m512 even2 = _mm512_shuffle_f32x4(a[h + 8], a[h + 12], 0x88), odd2 = _mm512_shuffle_f32x4(a[h + 8], a[h + 12], 0xdd);
        _mm512_storeu_ps(out + h * out_stride, _mm512_shuffle_f32x4(even, even2, 0x88));
        _mm512_storeu_ps(out + (h + 4) * out_stride, _mm512_shuffle_f32x4(odd, odd2, 0x88));
        _mm512_storeu_ps(out + (h + 8) * out_stride, _mm512_shuffle_f32x4(even, even2, 0xdd));
        _mm512_storeu_ps(out + (h + 12) * out_stride, _mm512_shuffle_f32x4(odd, odd2, 0xdd));
    }
}
