/* AVX-512 F, BW, DQ, VL (Skylake server and later). */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2,popcnt"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2,popcnt")
#endif
#include "kernels.h"

#include "avx512.h"
#include "nibbles.h"

/* 64 weights of 4-bit codes: a byte each, then sixteen at a time expanded and looked up in their block's weights. */
OP void decode_q4_word(const uint8_t *codes, int64_t total, int64_t code, uint64_t word, const uint8_t *grid, int64_t w,
                       int64_t blocks, int dense, vec out[4]) {
    const __m512 steps = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    uint8_t spread[64 + 16] __attribute__((aligned(32)));
    spread_word(codes, total, code, spread);
    for (int64_t half = 0; half < 2; half++) {
        uint16_t ends[2] = {0, 0};
        if (2 * w + half < blocks) memcpy(ends, grid + 4 * (2 * w + half), 4);
        __m512 levels = _mm512_fmadd_ps(steps, _mm512_set1_ps(_cvtsh_ss(ends[0])), _mm512_set1_ps(_cvtsh_ss(ends[1])));
        for (int64_t g = 2 * half; g < 2 * half + 2; g++) {
            uint64_t before = g ? word & (~0ull >> (64 - 16 * g)) : 0;
            const uint8_t *next = spread + (dense ? 16 * g : __builtin_popcountll(before));
            __mmask16 bits = (__mmask16)(word >> (16 * g));
            __m512i lanes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)next));
            if (!dense) lanes = _mm512_maskz_expand_epi32(bits, lanes);
            out[g] = _mm512_maskz_permutexvar_ps(bits, lanes, levels);
        }
    }
}

OP void list_columns(uint16_t *out, uint64_t word, uint32_t base) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (uint32_t g = 0; g < 4; g++) {
        __mmask16 bits = (__mmask16)(word >> (16 * g));
        __m512i columns = _mm512_add_epi32(lane, _mm512_set1_epi32((int)(base + 16 * g)));
        _mm256_storeu_si256((__m256i *)(void *)out, _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(bits, columns)));
        out += __builtin_popcount(bits);
    }
}

#include "template.h"

#include "token.h"

const sh_kernels sh_avx512 = {"avx512", LANES, 0, 0, small, lanes, tile, transpose, normalise, rotate, attend, gate_up};

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
