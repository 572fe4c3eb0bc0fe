/* Plain C for any processor: four lanes that compilers turn into whatever vectors the target always has. */
#include "kernels.h"

#include <string.h>

#define LANES 4
#define BLOCK_ROWS 6
#define SH_SMALL_BY_LIST
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

OP void decode_q4_word(const uint8_t *codes, int64_t total, int64_t code, uint64_t word, const uint8_t *grid, int64_t w,
                       int64_t blocks, int dense, vec out[SH_WORD / LANES]) {
    float flat[SH_WORD];
    uint16_t ends[4] = {0, 0, 0, 0};
    memcpy(ends, grid + 8 * w, blocks - 2 * w >= 2 ? 8 : 4);
    const float scales[2] = {sh_from_f16(ends[0]), sh_from_f16(ends[2])};
    const float minima[2] = {sh_from_f16(ends[1]), sh_from_f16(ends[3])};
    (void)total;
    memset(flat, 0, sizeof flat);
    for (uint64_t left = word; left; left &= left - 1) {
        int column = __builtin_ctzll(left);
        int64_t number = dense ? code + column : code++;
        flat[column] = (float)(codes[number >> 1] >> (4 * (number & 1)) & 15) * scales[column / 32] + minima[column / 32];
    }
    memcpy(out, flat, sizeof flat);
}

OP void list_columns(uint16_t *out, uint64_t word, uint32_t base) {
    for (; word; word &= word - 1) *out++ = (uint16_t)(base + (uint32_t)__builtin_ctzll(word));
}

OP vec look(const uint16_t *indices, const float *x) { vec r; EACH r.f[j] = x[indices[j]]; return r; }

OP int64_t count_below(const uint16_t *columns, int64_t left, uint32_t bound) {
    int64_t count = 0;
    while (count < left && columns[count] < bound) count++;
    return count;
}

OP void transpose_block(const float *in, int64_t in_stride, float *out, int64_t out_stride) {
    for (int j = 0; j < LANES; j++)
        for (int i = 0; i < LANES; i++) out[j * out_stride + i] = in[i * in_stride + j];
}

#include "template.h"

#include "token.h"

const sh_kernels sh_portable = {"portable", LANES, 0, 0, small, lanes, tile, transpose, normalise, rotate, attend, gate_up};
