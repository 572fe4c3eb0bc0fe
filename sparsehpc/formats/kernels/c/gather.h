/* Rows of 16-bit indices, one token at a time. Included by template.h behind load_values. */

#ifndef SH_MASKED_REST
INLINE float rest_of_row(const char *values, int type, const uint16_t *indices, int64_t left, const float *x, vec sum) {
    float rest = 0.0f;
    for (int64_t i = 0; i < left; i++) {
        uint16_t half;
        float weight;
        if (type == SH_F32) memcpy(&weight, values + 4 * i, sizeof weight);
        if (type != SH_F32) memcpy(&half, values + 2 * i, sizeof half);
        if (type == SH_BF16) weight = sh_from_bf16(half);
        if (type == SH_F16) weight = sh_from_f16(half);
        rest += weight * x[indices[i]];
    }
    return v_sum(sum) + rest;
}
#endif

/* One row of 16-bit indices: the sum of values[i] * x[indices[i]]. */
INLINE float row_of(const char *values, int type, const uint16_t *indices, int64_t count, const float *x) {
    vec sum = v_zero();
    int64_t i = 0, bytes = element_bytes(type);
    for (; i + LANES <= count; i += LANES) {
        /* Hardware does not follow two streams as far ahead. */
        __builtin_prefetch(values + bytes * i + 2048, 0, 3);
        __builtin_prefetch((const char *)(indices + i) + 1024, 0, 3);
        sum = v_fma(load_values(values + bytes * i, type), look(indices + i, x), sum);
    }
    return rest_of_row(values + bytes * i, type, indices + i, count - i, x, sum);
}
INLINE float gather_row(const char *values, int type, const uint16_t *indices, int64_t count, const float *x) {
    if (type == SH_F32) return row_of(values, SH_F32, indices, count, x);
    if (type == SH_BF16) return row_of(values, SH_BF16, indices, count, x);
    return row_of(values, SH_F16, indices, count, x);
}
