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
#define TILE_STEP 2
typedef __m256 vec;
#define OP static inline __attribute__((always_inline))

#include "expand_table.h"

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
OP vec v_load_i8(const int8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)));
}
OP vec v_codes(uint64_t nibbles) {
    uint64_t bytes = _pdep_u64(nibbles & 0xffffffffull, 0x0f0f0f0f0f0f0f0full);
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)bytes)));
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
OP vec v_keep(vec a, uint32_t bits) {
    return _mm256_andnot_ps(_mm256_castsi256_ps(_mm256_srai_epi32(expand_lanes(bits), 31)), a);
}
OP void v_pack(float *out, vec a, uint32_t bits) {
    float lanes[8];
    v_store(lanes, a);
    for (; bits; bits &= bits - 1) *out++ = lanes[__builtin_ctz(bits)];
}
OP void list_columns(uint16_t *out, uint64_t word, uint32_t base) {
    for (; word; word &= word - 1) *out++ = (uint16_t)(base + (uint32_t)__builtin_ctzll(word));
}

OP float value_at(const char *values, int type, int64_t i) {
    if (type == SH_F32) return ((const float *)(const void *)values)[i];
    uint16_t half = ((const uint16_t *)(const void *)values)[i];
    return type == SH_BF16 ? sh_from_bf16(half) : _cvtsh_ss(half);
}
OP float gather_typed(const char *values, int type, const uint16_t *indices, int64_t count, const float *x) {
    /* Scalar loads: gathers of eight are slower than eight loads on most processors that stop at AVX2. */
    float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
    int64_t i = 0;
    for (; i + 4 <= count; i += 4) {
        s0 += value_at(values, type, i) * x[indices[i]];
        s1 += value_at(values, type, i + 1) * x[indices[i + 1]];
        s2 += value_at(values, type, i + 2) * x[indices[i + 2]];
        s3 += value_at(values, type, i + 3) * x[indices[i + 3]];
    }
    for (; i < count; i++) s0 += value_at(values, type, i) * x[indices[i]];
    return (s0 + s2) + (s1 + s3);
}
OP float gather_row(const char *values, int type, const uint16_t *indices, int64_t count, const float *x) {
    if (type == SH_F32) return gather_typed(values, SH_F32, indices, count, x);
    if (type == SH_BF16) return gather_typed(values, SH_BF16, indices, count, x);
    return gather_typed(values, SH_F16, indices, count, x);
}

#include "template.h"

const sh_kernels sh_avx2 = {"avx2", LANES, small, lanes, tile};

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
