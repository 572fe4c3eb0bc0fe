/* Values of x at 16-bit indices. Loaded one by one on purpose: gather instructions are no faster on AMD, and microcode
 * against data sampling has made them slow on many Intel processors. Needs AVX. */
#include <immintrin.h>
#include <string.h>

/* Four indices come as one word: a load for each of them would be what limits it. */
OP __m128 look4(uint64_t indices, const float *x) {
    __m128 low = _mm_insert_ps(_mm_load_ss(x + (uint16_t)indices), _mm_load_ss(x + (uint16_t)(indices >> 16)), 0x10);
    __m128 high = _mm_insert_ps(_mm_load_ss(x + (uint16_t)(indices >> 32)), _mm_load_ss(x + (indices >> 48)), 0x10);
    return _mm_movelh_ps(low, high);
}
OP __m256 look8(const uint16_t *indices, const float *x) {
    uint64_t four[2];
    memcpy(four, indices, sizeof four);
    return _mm256_insertf128_ps(_mm256_castps128_ps256(look4(four[0], x)), look4(four[1], x), 1);
}
/* What is read next, while this is multiplied: hardware does not follow two streams as far as that. */
OP void prefetch_row(const char *values, const uint16_t *indices) {
    __builtin_prefetch(values + 2048, 0, 3);
    __builtin_prefetch((const char *)indices + 1024, 0, 3);
}
/* One row: the sum of values[i] * x[indices[i]]. The version says how a vector of it and what is left over is summed. */
#define GATHER_ROW                                                                                                     \
    OP float gather_row(const char *values, int type, const uint16_t *indices, int64_t count, const float *x) {        \
        if (type == SH_F32) return gather_typed(values, SH_F32, indices, count, x);                                    \
        if (type == SH_BF16) return gather_typed(values, SH_BF16, indices, count, x);                                  \
        return gather_typed(values, SH_F16, indices, count, x);                                                        \
    }
