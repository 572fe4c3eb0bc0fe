/* Plain C for any processor: four lanes that compilers turn into whatever vectors the target always has. */
#include "kernels.h"

#include <math.h>

#define LANES 4
#define TILE_STEP 2
typedef struct { float f[LANES]; } vec;
#define EACH for (int j = 0; j < LANES; j++)
#define OP static inline __attribute__((always_inline))

OP vec v_set(float a) { vec r; EACH r.f[j] = a; return r; }
OP vec v_zero(void) { return v_set(0.0f); }
OP vec v_load(const float *p) { vec r; EACH r.f[j] = p[j]; return r; }
OP void v_store(float *p, vec a) { EACH p[j] = a.f[j]; }
OP vec v_add(vec a, vec b) { EACH a.f[j] += b.f[j]; return a; }
OP vec v_fma(vec a, vec b, vec c) { EACH c.f[j] += a.f[j] * b.f[j]; return c; }
OP float v_sum(vec a) { return (a.f[0] + a.f[2]) + (a.f[1] + a.f[3]); }
OP vec v_load_bf16(const uint16_t *p) { vec r; EACH r.f[j] = sh_from_bf16(p[j]); return r; }
OP vec v_load_f16(const uint16_t *p) { vec r; EACH r.f[j] = sh_from_f16(p[j]); return r; }
OP vec v_load_i8(const int8_t *p) { vec r; EACH r.f[j] = (float)p[j]; return r; }
OP vec v_codes(uint64_t nibbles) { vec r; EACH r.f[j] = (float)(nibbles >> (4 * j) & 15); return r; }
OP vec v_keep(vec a, uint32_t bits) { EACH a.f[j] = bits >> j & 1 ? a.f[j] : 0.0f; return a; }

OP vec v_expand(vec a, uint32_t bits) {
    vec r;
    int next = 0;
    EACH {
        r.f[j] = bits >> j & 1 ? a.f[next & (LANES - 1)] : 0.0f;
        next += bits >> j & 1;
    }
    return r;
}

OP void v_pack(float *out, vec a, uint32_t bits) {
    int next = 0;
    EACH if (bits >> j & 1) out[next++] = a.f[j];
}

OP void list_columns(uint16_t *out, uint64_t word, uint32_t base) {
    for (; word; word &= word - 1) *out++ = (uint16_t)(base + (uint32_t)__builtin_ctzll(word));
}

OP float gather_row(const char *values, int type, const uint16_t *indices, int64_t count, const float *x) {
    float sums[4] = {0, 0, 0, 0};
    for (int64_t i = 0; i < count; i++) {
        float value = type == SH_F32    ? ((const float *)(const void *)values)[i]
                      : type == SH_BF16 ? sh_from_bf16(((const uint16_t *)(const void *)values)[i])
                                        : sh_from_f16(((const uint16_t *)(const void *)values)[i]);
        sums[i & 3] += value * x[indices[i]];
    }
    return (sums[0] + sums[2]) + (sums[1] + sums[3]);
}

#include "template.h"

const sh_kernels sh_portable = {"portable", LANES, small, lanes, tile};
