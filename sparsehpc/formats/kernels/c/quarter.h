/* One token and one weight of four: which of four inputs each lane multiplies is looked up, nothing is expanded.
 * Needs VBMI; included by isa_avx512_vbmi2.c behind few.h. */

/* Columns of the sixteen weights of word w of a row, a byte each. `left`: bytes of positions from there on. */
INLINE __m128i quarter_columns(const uint8_t *positions, int64_t left) {
    const __m128i fields = _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m128i fours = _mm_setr_epi8(0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60);
    uint32_t codes = 0;
    if (left >= 4) memcpy(&codes, positions, 4);
    else memcpy(&codes, positions, (size_t)left);
    __m128i field = _mm_multishift_epi64_epi8(fields, _mm_set1_epi32((int)codes));
    return _mm_ternarylogic_epi32(field, _mm_set1_epi8(3), fours, 0xea); /* field & 3 | fours */
}

/* Rows r and, if there are two, the next. `pairs`: bfloat16 on both sides. */
INLINE void quarter_rows(const sh_matrix *m, const sh_work *work, int64_t r, int rows, int type, int pairs) {
    int64_t words = words_of(m), size = element_bytes(type), row_bytes = (m->columns + 15) / 16;
    const char *p[FEW_ROWS];
    vec sums[FEW_ROWS];
    for (int i = 0; i < rows; i++) {
        p[i] = (const char *)m->values + (r + i) * m->per_row * size;
        sums[i] = v_zero();
    }
    for (int64_t w = 0; w < words; w++) {
        int64_t left = m->per_row - 16 * w;
        __mmask16 here = left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1);
        __m512i inputs[4];
        for (int g = 0; g < (pairs ? 2 : 4); g++)
            inputs[g] = pairs ? _mm512_loadu_si512(work->bfloat16 + w * SH_WORD + 32 * g)
                              : _mm512_loadu_si512(work->rows + w * SH_WORD + 16 * g);
        for (int i = 0; i < rows; i++) {
            __m128i columns = quarter_columns(m->positions + (r + i) * row_bytes + 4 * w, row_bytes - 4 * w);
            const char *values = p[i] + 16 * w * size;
            char copy[64];
            if (left < 16) {
                memset(copy, 0, sizeof copy);
                memcpy(copy, values, (size_t)(left * size));
                values = copy;
            } else {
                __builtin_prefetch(values + 16384, 0, 2);
            }
            if (pairs) {
                __m512i wanted = _mm512_zextsi256_si512(_mm256_cvtepu8_epi16(columns));
                __m512i x = _mm512_maskz_permutex2var_epi16(here, inputs[0], wanted, inputs[1]);
                __m512i stored = _mm512_zextsi256_si512(_mm256_loadu_si256((const __m256i *)(const void *)values));
                sums[i] = _mm512_dpbf16_ps(sums[i], (__m512bh)stored, (__m512bh)x);
            } else {
                /* The first eight weights read the first 32 columns, the others the rest. */
                __m512i wanted = _mm512_cvtepu8_epi32(columns);
                vec x = _mm512_mask_blend_ps(0xff00,
                                             _mm512_permutex2var_ps((vec)inputs[0], wanted, (vec)inputs[1]),
                                             _mm512_permutex2var_ps((vec)inputs[2], wanted, (vec)inputs[3]));
                sums[i] = _mm512_mask3_fmadd_ps(load_values(values, type), x, sums[i], here);
            }
        }
    }
    for (int i = 0; i < rows; i++) work->y[r + i] = v_sum(sums[i]);
}

#define QUARTER(name, type, pairs)                                                                                     \
    static void name(const sh_matrix *m, const sh_work *work, int64_t first, int64_t last) {                           \
        int64_t r = first;                                                                                             \
        for (; r + 1 < last; r += 2) quarter_rows(m, work, r, 2, type, pairs);                                         \
        if (r < last) quarter_rows(m, work, r, 1, type, pairs);                                                        \
    }

QUARTER(quarter_pairs, SH_BF16, 1)
QUARTER(quarter_f32, SH_F32, 0)
QUARTER(quarter_bf16, SH_BF16, 0)
QUARTER(quarter_f16, SH_F16, 0)

static void small_quarter(const sh_matrix *m, const sh_work *work, int64_t first, int64_t last) {
    if (m->type == SH_F32) quarter_f32(m, work, first, last);
    else if (m->type == SH_F16) quarter_f16(m, work, first, last);
    else if (work->bfloat16) quarter_pairs(m, work, first, last);
    else quarter_bf16(m, work, first, last);
}
