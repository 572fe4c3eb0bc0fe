/* 4-bit codes to a byte each, with SSE instructions that both AVX2 and AVX-512 have. */
#include <immintrin.h>
#include <string.h>

/* 32 codes from code number `code` on, a byte each; 17 bytes are read. */
OP void spread_codes(const uint8_t *codes, int odd, uint8_t *out) {
    const __m128i low = _mm_set1_epi8(15);
    __m128i here = _mm_loadu_si128((const __m128i *)(const void *)codes), even, uneven;
    if (odd) {
        even = _mm_and_si128(_mm_srli_epi16(here, 4), low);
        uneven = _mm_and_si128(_mm_loadu_si128((const __m128i *)(const void *)(codes + 1)), low);
    } else {
        even = _mm_and_si128(here, low);
        uneven = _mm_and_si128(_mm_srli_epi16(here, 4), low);
    }
    _mm_store_si128((__m128i *)(void *)out, _mm_unpacklo_epi8(even, uneven));
    _mm_store_si128((__m128i *)(void *)(out + 16), _mm_unpackhi_epi8(even, uneven));
}

/* 64 codes from code number `code` on; bytes past `total` read as zero. `out` has room for 80. */
OP void spread_word(const uint8_t *codes, int64_t total, int64_t code, uint8_t *out) {
    uint8_t copy[40];
    const uint8_t *from = codes + (code >> 1);
    if ((code >> 1) + 33 > total) {
        int64_t left = total - (code >> 1);
        memset(copy, 0, sizeof copy);
        if (left > 0) memcpy(copy, from, (size_t)left);
        from = copy;
    }
    spread_codes(from, (int)(code & 1), out);
    spread_codes(from + 16, (int)(code & 1), out + 32);
    _mm_store_si128((__m128i *)(void *)(out + 64), _mm_setzero_si128());
}
