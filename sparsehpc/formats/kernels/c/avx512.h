/* AVX-512 operations that both AVX-512 versions share. */
#include <immintrin.h>

#define LANES 16
#define TILE_STEP 4
typedef __m512 vec;
#define OP static inline __attribute__((always_inline))

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
OP vec v_load_i8(const int8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)));
}
OP vec v_codes(uint64_t nibbles) {
    uint64_t low = _pdep_u64(nibbles, 0x0f0f0f0f0f0f0f0full), high = _pdep_u64(nibbles >> 32, 0x0f0f0f0f0f0f0f0full);
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_set_epi64x((long long)high, (long long)low)));
}
/* Load, then expand in registers: the memory form of the instruction is slower. */
OP vec v_expand(vec a, uint32_t bits) { return _mm512_maskz_expand_ps((__mmask16)bits, a); }
OP vec v_keep(vec a, uint32_t bits) { return _mm512_maskz_mov_ps((__mmask16)bits, a); }
OP void v_pack(float *out, vec a, uint32_t bits) {
    _mm512_storeu_ps(out, _mm512_maskz_compress_ps((__mmask16)bits, a));
}

OP vec load_typed(const char *p, int type) {
    if (type == SH_F32) return _mm512_loadu_ps(p);
    const __m256i half = _mm256_loadu_si256((const __m256i *)(const void *)p);
    if (type == SH_F16) return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
OP float gather_typed(const char *values, int type, const uint16_t *indices, int64_t count, const float *x) {
    const int64_t size = type == SH_F32 ? 4 : 2;
    __m512 a = _mm512_setzero_ps(), b = a;
    int64_t i = 0;
    for (; i + 32 <= count; i += 32) {
        const char *p = values + i * size;
        __builtin_prefetch(p + 2048, 0, 3);
        __builtin_prefetch(p + 2112, 0, 3);
        __builtin_prefetch((const char *)(indices + i) + 1024, 0, 3);
        __m512i first = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)(indices + i)));
        __m512i second = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)(indices + i + 16)));
        a = _mm512_fmadd_ps(load_typed(p, type), _mm512_i32gather_ps(first, x, 4), a);
        b = _mm512_fmadd_ps(load_typed(p + 16 * size, type), _mm512_i32gather_ps(second, x, 4), b);
    }
    for (; i < count; i += 16) {
        const __mmask16 some = (__mmask16)(count - i >= 16 ? 0xffff : (1u << (count - i)) - 1);
        __m512i at = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, indices + i));
        __m512 value;
        if (type == SH_F32) value = _mm512_maskz_loadu_ps(some, values + i * size);
        else {
            const __m256i half = _mm256_maskz_loadu_epi16(some, values + i * size);
            value = type == SH_F16 ? _mm512_cvtph_ps(half)
                                   : _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
        }
        __m512 in = _mm512_mask_i32gather_ps(_mm512_setzero_ps(), some, at, x, 4);
        a = _mm512_fmadd_ps(value, in, a);
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(a, b));
}
OP float gather_row(const char *values, int type, const uint16_t *indices, int64_t count, const float *x) {
    if (type == SH_F32) return gather_typed(values, SH_F32, indices, count, x);
    if (type == SH_BF16) return gather_typed(values, SH_BF16, indices, count, x);
    return gather_typed(values, SH_F16, indices, count, x);
}
