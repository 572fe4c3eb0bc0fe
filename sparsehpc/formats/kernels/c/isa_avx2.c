/* AVX2, FMA, F16C, BMI2: eight lanes; expansion by a table of 256 permutations. */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi,bmi2,popcnt"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,bmi,bmi2,popcnt")
#endif
#include "kernels.h"

#include <immintrin.h>

#define LANES 8
#define BLOCK_ROWS 6
typedef __m256 vec;
#define OP static inline __attribute__((always_inline))

#include "expand_table.h"
#include "look.h"
#include "nibbles.h"

OP vec v_set(float a) { return _mm256_set1_ps(a); }
OP vec v_zero(void) { return _mm256_setzero_ps(); }
OP vec v_load(const float *p) { return _mm256_loadu_ps(p); }
OP void v_store(float *p, vec a) { _mm256_storeu_ps(p, a); }
OP vec v_add(vec a, vec b) { return _mm256_add_ps(a, b); }
OP vec v_fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
OP float v_sum(vec a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
OP vec v_load_bf16(const uint16_t *p) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
OP vec v_load_f16(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p)); }
OP vec look(const uint16_t *indices, const float *x) { return look8(indices, x); }
OP vec v_load_i8(const int8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)));
}
/* The lane each result lane takes; negative where the bit is not set. */
OP __m256i expand_lanes(uint32_t bits) {
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)sh_expand_table[bits]));
}
OP vec v_expand(vec a, uint32_t bits) {
    __m256i from = expand_lanes(bits);
    __m256 unset = _mm256_castsi256_ps(_mm256_srai_epi32(from, 31));
    return _mm256_andnot_ps(unset, _mm256_permutevar8x32_ps(a, from));
}
OP void v_pack(float *out, vec a, uint32_t bits) {
    float lanes[8];
    v_store(lanes, a);
    for (; bits; bits &= bits - 1) *out++ = lanes[__builtin_ctz(bits)];
}
OP void list_columns(uint16_t *out, uint64_t word, uint32_t base) {
    for (; word; word &= word - 1) *out++ = (uint16_t)(base + (uint32_t)__builtin_ctzll(word));
}

/* 64 weights of 4-bit codes: a byte each, then eight at a time expanded by the table. */
OP void decode_q4_word(const uint8_t *codes, int64_t total, int64_t code, uint64_t word, const uint8_t *grid, int64_t w,
                       int64_t blocks, int dense, vec out[8]) {
    uint8_t spread[64 + 16] __attribute__((aligned(32)));
    spread_word(codes, total, code, spread);
    for (int64_t half = 0; half < 2; half++) {
        uint16_t ends[2] = {0, 0};
        if (2 * w + half < blocks) memcpy(ends, grid + 4 * (2 * w + half), 4);
        __m256 scale = _mm256_set1_ps(_cvtsh_ss(ends[0])), minimum = _mm256_set1_ps(_cvtsh_ss(ends[1]));
        for (int64_t g = 4 * half; g < 4 * half + 4; g++) {
            uint64_t before = g ? word & (~0ull >> (64 - 8 * g)) : 0;
            const uint8_t *next = spread + (dense ? 8 * g : __builtin_popcountll(before));
            __m256i lanes = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)next));
            __m256i place = expand_lanes((uint32_t)(word >> (8 * g) & 255));
            if (!dense) lanes = _mm256_permutevar8x32_epi32(lanes, place);
            __m256 weight = _mm256_fmadd_ps(_mm256_cvtepi32_ps(lanes), scale, minimum);
            out[g] = _mm256_andnot_ps(_mm256_castsi256_ps(_mm256_srai_epi32(place, 31)), weight);
        }
    }
}

OP int64_t count_below(const uint16_t *columns, int64_t left, uint32_t bound) {
    int64_t count = 0;
    while (count < left && columns[count] < bound) count++;
    return count;
}

OP void transpose_block(const float *in, int64_t in_stride, float *out, int64_t out_stride) {
    __m256 a[8], b[8];
    for (int i = 0; i < 8; i++) a[i] = _mm256_loadu_ps(in + i * in_stride);
    for (int i = 0; i < 8; i += 2) {
        b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int h = 0; h < 2; h++) {
            a[i + 2 * h] = _mm256_shuffle_ps(b[i + h], b[i + h + 2], 0x44);
            a[i + 2 * h + 1] = _mm256_shuffle_ps(b[i + h], b[i + h + 2], 0xee);
        }
    for (int h = 0; h < 4; h++) {
        _mm256_storeu_ps(out + h * out_stride, _mm256_permute2f128_ps(a[h], a[h + 4], 0x20));
        _mm256_storeu_ps(out + (h + 4) * out_stride, _mm256_permute2f128_ps(a[h], a[h + 4], 0x31));
    }
}

#include "template.h"

#include "token.h"

const sh_kernels sh_avx2 = {"avx2", LANES, 0, 0, small, lanes, tile, transpose, normalise, rotate, attend, gate_up};

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
