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
