/* AVX-512 F, BW, DQ, VL (Skylake server and later). */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2,popcnt"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2,popcnt")
#endif
#include "kernels.h"

#include "avx512.h"

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

const sh_kernels sh_avx512 = {"avx512", LANES, small, lanes, tile};

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
