/* One token and rows that keep few weights: inputs are brought to the weights instead of weights to the inputs.
 *
 * The columns of a word's weights are listed, a byte each, and looked up among the word's 64 inputs, 32 at a time: one
 * permutation of 16-bit halves does that for bfloat16, two for float. A word takes two thirds to four fifths of the time
 * of its expansions, whatever it keeps up to 32. Needs VBMI2; included by isa_avx512_vbmi2.c.
 */

/* Of 64 weights. Beyond, words that keep more than 32 come too often to be foreseen. */
#define FEW 26
/* Rows beside each other: they share the inputs, and neither waits for the other's sum. */
#define FEW_ROWS 2

INLINE int keeps_few(const sh_matrix *m, int64_t r) {
    return (row_start(m, SH_BITMAP, r + 1) - row_start(m, SH_BITMAP, r)) * SH_WORD <= m->columns * FEW;
}

/* The first n bits, in memory: moving a mask from a general register takes longer than loading it. */
#define FIRST(n) ((n) < 64 ? (1ull << ((n) & 63)) - 1 : ~0ull)
#define FIRST_8(n) FIRST(n), FIRST(n + 1), FIRST(n + 2), FIRST(n + 3), FIRST(n + 4), FIRST(n + 5), FIRST(n + 6), FIRST(n + 7)
static const uint64_t first_bits[72] = {FIRST_8(0),  FIRST_8(8),  FIRST_8(16), FIRST_8(24), FIRST_8(32),
                                        FIRST_8(40), FIRST_8(48), FIRST_8(56), FIRST_8(64)};

OP __mmask64 mask64_at(const uint64_t *p) {
    __mmask64 mask;
    __asm__("kmovq %1, %0" : "=k"(mask) : "m"(*p));
    return mask;
}
/* Bits 16 n to 16 n + 15, or 32 n to 32 n + 31, of a word. */
OP __mmask16 mask16_at(const uint64_t *p, int n) {
    __mmask16 mask;
    __asm__("kmovw %1, %0" : "=k"(mask) : "m"(((const struct { uint16_t parts[4]; } *)(const void *)p)->parts[n]));
    return mask;
}
OP __mmask32 mask32_at(const uint64_t *p, int n) {
    __mmask32 mask;
    __asm__("kmovd %1, %0" : "=k"(mask) : "m"(((const struct { uint32_t parts[2]; } *)(const void *)p)->parts[n]));
    return mask;
}

/* Columns of the set bits, a byte each, then zeros. Like expansions, compressions wait for the old content. */
OP __m512i columns_of(const uint64_t *word) {
    const __m512i all = _mm512_load_si512(lane_numbers);
    __m512i out = _mm512_setzero_si512();
    __asm__("vpcompressb %2, %0%{%1%}%{z%}" : "+v"(out) : "Yk"(mask64_at(word)), "v"(all));
    return out;
}

/* The next values of a row: `count` of them may be read if `careful`, 64 otherwise. `copy` has room for 64. */
INLINE const char *next_values(const char **p, int64_t count, int64_t size, int careful, char *copy) {
    const char *here = *p;
    *p += count * size;
    if (careful) {
        memset(copy, 0, (size_t)(SH_WORD * size));
        memcpy(copy, here, (size_t)(count * size));
        return copy;
    }
    for (int64_t line = 0; line < SH_WORD / 2 * size; line += 64) __builtin_prefetch(here + 16384 + line, 0, 2);
    return here;
}

/* ---- float activations ---------------------------------------------------------------------------------------- */

/* For every word of 64 columns the lower halves of its inputs, then the upper ones. */
static void split_input(const float *x, int64_t padded, uint16_t *halves) {
    for (int64_t k = 0; k < padded; k += SH_WORD, halves += 2 * SH_WORD)
        for (int g = 0; g < SH_WORD; g += 16) {
            __m512i bits = _mm512_loadu_si512(x + k + g);
            _mm256_storeu_si256((__m256i *)(void *)(halves + g), _mm512_cvtepi32_epi16(bits));
            _mm256_storeu_si256((__m256i *)(void *)(halves + SH_WORD + g),
                                _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)));
        }
}

/* 32 values times their inputs. `order`: which column each 16-bit lane looks up so that halves fall together in order;
 * what a lane holds above six bits does not matter. Lanes without a value are not added, whatever they looked up. */
typedef struct { vec even, odd; } two_sums; /* by value: an array would be kept in memory */

INLINE two_sums add_floats(const char *values, int type, __m512i columns, __m512i order, const __m512i inputs[4],
                           const uint64_t *first, int half, two_sums sums) {
    __m512i wanted = _mm512_permutexvar_epi8(order, columns);
    __m512i low = _mm512_permutex2var_epi16(inputs[0], wanted, inputs[1]);
    __m512i high = _mm512_permutex2var_epi16(inputs[2], wanted, inputs[3]);
    vec x0 = _mm512_castsi512_ps(_mm512_unpacklo_epi16(low, high));
    vec x1 = _mm512_castsi512_ps(_mm512_unpackhi_epi16(low, high));
    return (two_sums){_mm512_mask3_fmadd_ps(load_values(values, type), x0, sums.even, mask16_at(first, 2 * half)),
                      _mm512_mask3_fmadd_ps(load_values(values + 16 * element_bytes(type), type), x1, sums.odd,
                                            mask16_at(first, 2 * half + 1))};
}

INLINE void few_floats(const sh_matrix *m, const sh_work *work, int64_t r, int rows, int type, int careful) {
    static const uint8_t orders[2][64] __attribute__((aligned(64))) = {
        {0,  0, 1,  0, 2,  0, 3,  0, 16, 0, 17, 0, 18, 0, 19, 0, 4,  0, 5,  0, 6,  0, 7,  0, 20, 0, 21, 0, 22, 0, 23, 0,
         8,  0, 9,  0, 10, 0, 11, 0, 24, 0, 25, 0, 26, 0, 27, 0, 12, 0, 13, 0, 14, 0, 15, 0, 28, 0, 29, 0, 30, 0, 31, 0},
        {32, 0, 33, 0, 34, 0, 35, 0, 48, 0, 49, 0, 50, 0, 51, 0, 36, 0, 37, 0, 38, 0, 39, 0, 52, 0, 53, 0, 54, 0, 55, 0,
         40, 0, 41, 0, 42, 0, 43, 0, 56, 0, 57, 0, 58, 0, 59, 0, 44, 0, 45, 0, 46, 0, 47, 0, 60, 0, 61, 0, 62, 0, 63, 0}};
    const __m512i order = _mm512_load_si512(orders[0]);
    const uint16_t *halves = work->scratch;
    int64_t words = words_of(m), size = element_bytes(type);
    const char *p[FEW_ROWS];
    two_sums sums[FEW_ROWS];
    for (int i = 0; i < rows; i++) {
        p[i] = (const char *)m->values + row_start(m, SH_BITMAP, r + i) * size;
        sums[i] = (two_sums){v_zero(), v_zero()};
    }
    for (int64_t w = 0; w < words; w++) {
        __m512i inputs[4];
        for (int g = 0; g < 4; g++) inputs[g] = _mm512_loadu_si512(halves + 2 * SH_WORD * w + 32 * g);
        for (int i = 0; i < rows; i++) {
            const uint64_t *word = m->mask + (r + i) * words + w;
            int64_t count = __builtin_popcountll(*word);
            char copy[SH_WORD * 4];
            const char *values = next_values(&p[i], count, size, careful, copy);
            __m512i columns = columns_of(word);
            sums[i] = add_floats(values, type, columns, order, inputs, first_bits + count, 0, sums[i]);
            if (__builtin_expect(count > 32, 0))
                sums[i] = add_floats(values + 32 * size, type, columns, _mm512_load_si512(orders[1]), inputs,
                                     first_bits + count, 1, sums[i]);
        }
    }
    for (int i = 0; i < rows; i++)
        work->y[r + i] = v_sum(v_add(sums[i].even, sums[i].odd)) * (type == SH_I8 ? ((const float *)m->scales)[r + i] : 1.0f);
}

/* ---- bfloat16 activations and weights ------------------------------------------------------------------------- */

/* A pair of which only one is there must not read the other: both sides are zero where there is no value. */
INLINE vec add_pairs(const char *values, __m256i columns, const __m512i inputs[2], __mmask32 here, vec sum) {
    __m512i x = _mm512_maskz_permutex2var_epi16(here, inputs[0], _mm512_cvtepu8_epi16(columns), inputs[1]);
    __m512i stored = _mm512_loadu_si512(values);
    __asm__("" : "+v"(stored)); /* a masked load is slower than a load and a masked move, which compilers join */
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_maskz_mov_epi16(here, stored), (__m512bh)x);
}

INLINE void few_pairs(const sh_matrix *m, const sh_work *work, int64_t r, int rows, int careful) {
    int64_t words = words_of(m);
    const char *p[FEW_ROWS];
    vec sums[FEW_ROWS];
    for (int i = 0; i < rows; i++) {
        p[i] = (const char *)m->values + row_start(m, SH_BITMAP, r + i) * 2;
        sums[i] = v_zero();
    }
    for (int64_t w = 0; w < words; w++) {
        const uint16_t *x = work->bfloat16 + w * SH_WORD;
        const __m512i inputs[2] = {_mm512_loadu_si512(x), _mm512_loadu_si512(x + 32)};
        for (int i = 0; i < rows; i++) {
            const uint64_t *word = m->mask + (r + i) * words + w;
            int64_t count = __builtin_popcountll(*word);
            char copy[SH_WORD * 2];
            const char *values = next_values(&p[i], count, 2, careful, copy);
            __m512i columns = columns_of(word);
            sums[i] = add_pairs(values, _mm512_castsi512_si256(columns), inputs, mask32_at(first_bits + count, 0), sums[i]);
            if (__builtin_expect(count > 32, 0))
                sums[i] = add_pairs(values + 64, _mm512_extracti64x4_epi64(columns, 1), inputs,
                                    mask32_at(first_bits + count, 1), sums[i]);
        }
    }
    for (int i = 0; i < rows; i++) work->y[r + i] = v_sum(sums[i]);
}

/* ---- rows as they come ---------------------------------------------------------------------------------------- */

/* `pairs`: bfloat16 on both sides. Which way a row is computed follows from the row alone. */
INLINE void mixed_rows(const sh_matrix *m, const sh_work *work, int64_t first, int64_t last, int type, int pairs) {
    for (int64_t r = first; r < last;) {
        int few = keeps_few(m, r), two = few && r + 1 < last && keeps_few(m, r + 1);
        int careful = is_careful(m, SH_BITMAP, type, two ? r + 1 : r, 0);
        if (pairs) {
            if (!few) bf16_row(m, work, r, SH_BITMAP, 1, careful);
            else if (careful) few_pairs(m, work, r, two ? 2 : 1, 1);
            else if (two) few_pairs(m, work, r, 2, 0);
            else few_pairs(m, work, r, 1, 0);
        } else {
            if (!few) small_row(m, work, r, SH_BITMAP, type, 1, careful);
            else if (careful) few_floats(m, work, r, two ? 2 : 1, type, 1);
            else if (two) few_floats(m, work, r, 2, type, 0);
            else few_floats(m, work, r, 1, type, 0);
        }
        r += two ? 2 : 1;
    }
}

#define MIXED(name, type, pairs)                                                                                       \
    static void name(const sh_matrix *m, const sh_work *work, int64_t first, int64_t last) {                           \
        mixed_rows(m, work, first, last, type, pairs);                                                                 \
    }

MIXED(mixed_pairs, SH_BF16, 1)
MIXED(mixed_f32, SH_F32, 0)
MIXED(mixed_bf16, SH_BF16, 0)
MIXED(mixed_f16, SH_F16, 0)
MIXED(mixed_i8, SH_I8, 0)

static void small_mixed(const sh_matrix *m, const sh_work *work, int64_t first, int64_t last) {
    static void (*const table[])(const sh_matrix *, const sh_work *, int64_t, int64_t) = {mixed_f32, mixed_bf16,
                                                                                         mixed_f16, mixed_i8};
    if (m->type == SH_BF16 && work->bfloat16) {
        mixed_pairs(m, work, first, last);
        return;
    }
    split_input(work->rows, work->padded_columns, work->scratch);
    table[m->type](m, work, first, last);
}
