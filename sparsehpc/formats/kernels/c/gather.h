/* One row of 16-bit indices times x. Scalar loads on purpose: gather instructions are no faster on AMD, and microcode
 * against data sampling has made them slow on many Intel processors. Needs F16C. */
#include <immintrin.h>
#include <string.h>

OP float value_at(const char *values, int type, int64_t i) {
    if (type == SH_F32) return ((const float *)(const void *)values)[i];
    uint16_t half = ((const uint16_t *)(const void *)values)[i];
    return type == SH_BF16 ? sh_from_bf16(half) : _cvtsh_ss(half);
}
OP float gather_typed(const char *values, int type, const uint16_t *indices, int64_t count, const float *x) {
    float s[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        uint64_t four[2]; /* four indices a load: three loads for every weight would be what limits it */
        memcpy(four, indices + i, 16);
        __builtin_prefetch(values + i * (type == SH_F32 ? 4 : 2) + 2048, 0, 3);
        __builtin_prefetch((const char *)(indices + i) + 1024, 0, 3);
        for (int j = 0; j < 8; j++)
            s[j] += value_at(values, type, i + j) * x[four[j / 4] >> (16 * (j % 4)) & 0xffff];
    }
    for (; i < count; i++) s[0] += value_at(values, type, i) * x[indices[i]];
    return ((s[0] + s[4]) + (s[1] + s[5])) + ((s[2] + s[6]) + (s[3] + s[7]));
}
OP float gather_row(const char *values, int type, const uint16_t *indices, int64_t count, const float *x) {
    if (type == SH_F32) return gather_typed(values, SH_F32, indices, count, x);
    if (type == SH_BF16) return gather_typed(values, SH_BF16, indices, count, x);
    return gather_typed(values, SH_F16, indices, count, x);
}
