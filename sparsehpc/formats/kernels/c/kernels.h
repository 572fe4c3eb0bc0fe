/* Products of stored weights with activations: y (tokens x rows) = x (tokens x columns) times W transposed.
 *
 * One shared object holds every instruction-set version. A version is a table of functions that work on a range of
 * rows and know nothing of threads; threads.c prepares the activations, splits the rows and calls them.
 */
#ifndef SPARSEHPC_KERNELS_H
#define SPARSEHPC_KERNELS_H

#include <stddef.h>
#include <stdint.h>

enum sh_type { SH_F32 = 0, SH_BF16 = 1, SH_F16 = 2, SH_I8 = 3, SH_Q4 = 4 };

enum sh_layout {
    SH_DENSE = 0,       /* values: rows x columns (SH_Q4: two columns a byte, rows padded to 32 columns) */
    SH_BITMAP = 1,      /* mask words and row offsets */
    SH_KEEP = 2,        /* mask words, equally many values in every row */
    SH_ONE_OF_FOUR = 3, /* one value and a 2-bit position per four columns */
    SH_INDEX16 = 4      /* 16-bit column indices and row offsets */
};

/* How the product is computed; SH_AUTO picks by layout, density and tokens. */
enum sh_strategy {
    SH_AUTO = 0,
    SH_SMALL = 1, /* up to SH_SMALL_TOKENS tokens in registers, weights decoded lane by lane; twice up to SH_SMALL_MOST */
    SH_LANES = 2, /* tokens in the lanes of a vector: one multiply-add per stored weight and vector of tokens */
    SH_TILE = 3   /* blocks of rows decoded to the first-level cache, then a dense product, tokens in lanes too */
};

enum { SH_SMALL_TOKENS = 4, SH_SMALL_MOST = 8, SH_WORD = 64, SH_MAX_COLUMNS = 65536 };

typedef struct {
    int32_t layout;
    int32_t type;
    int64_t rows;
    int64_t columns;
    const void *values;
    const uint64_t *mask;     /* rows x ceil(columns / 64) */
    const uint8_t *positions; /* rows x ceil(columns / 16) */
    const uint16_t *indices;
    const int32_t *offsets;   /* rows + 1: first value of every row (SH_Q4: first byte) */
    const void *scales;       /* SH_I8: float per row; SH_Q4: two halves per 32 columns, scale and minimum */
    int64_t per_row;          /* values in every row, where there are no offsets */
    int64_t total;            /* elements of values (SH_Q4: bytes): nothing beyond them is read */
} sh_matrix;

typedef struct {
    const float *rows;        /* SH_SMALL: tokens x padded_columns, float32, zeros behind the last column; else NULL */
    const uint16_t *bfloat16; /* the same in bfloat16 where weights and x are and meet in pairs; else NULL */
    const float *lanes;       /* by token group: columns x group width, zeros behind the last token */
    int64_t tokens;
    int64_t padded_columns;
    float *y;                 /* tokens x rows */
    void *scratch;            /* this thread's, scratch_bytes long, 64-byte aligned */
} sh_work;

typedef struct {
    const char *name;
    int32_t vector_lanes;
    int32_t bf16_pairs; /* whether bfloat16 weights and activations are multiplied in pairs, at twice the rate */
    int32_t splits_input; /* whether `small` wants scratch of padded_columns floats for one token and a mask */
    void (*small)(const sh_matrix *, const sh_work *, int64_t first, int64_t last);
    void (*lanes)(const sh_matrix *, const sh_work *, int64_t first, int64_t last);
    void (*tile)(const sh_matrix *, const sh_work *, int64_t first, int64_t last);
    /* out[j * out_stride + i] = in[i * in_stride + j] */
    void (*transpose)(const float *in, int64_t in_stride, int64_t rows, int64_t columns, float *out, int64_t out_stride);
    /* Between the products of one token; see token.h. */
    void (*normalise)(const float *x, const float *weight, int64_t width, float eps, float *out);
    void (*rotate)(const float *x, const float *cosines, const float *sines, int64_t width, float *out);
    void (*attend)(const float *query, const float *keys, const float *values, int64_t seen, int64_t width,
                   float *scores, float *out);
    void (*gate_up)(const float *gate, const float *up, int64_t width, float *out);
} sh_kernels;

/* Widest group of tokens the lanes kernel takes at once, in vectors. */
enum { SH_LANE_VECTORS = 4 };

/* The lanes kernel lists a panel of 1024 columns of 32 rows at a time; the lists may be overwritten by 64 entries. */
enum { SH_PANEL_WORDS = 16, SH_PANEL_ROWS = 32, SH_PANEL_ROOM = SH_PANEL_WORDS * SH_WORD + SH_WORD };

/* Rows of weights decoded at a time are at most SH_BLOCK_ROWS x SH_TILE_COLUMNS; a band of rows and tokens is summed before
 * it is written. */
enum { SH_TILE_COLUMNS = 256, SH_BLOCK_ROWS = 12, SH_BAND_ROWS = 96, SH_BAND_TOKENS = 256 };
/* Rows of sums are 16 floats longer, so that they do not share sets of the cache. */
enum { SH_BAND_BYTES = SH_BAND_ROWS * (SH_BAND_TOKENS + 16) * 4 };

/* The same where bfloat16 is multiplied in pairs: rows and columns decoded at a time. */
enum { SH_PAIR_COLUMNS = 1024, SH_PAIR_ROWS = 4 };

/* Threads' rows begin at multiples of this. */
enum { SH_SPLIT_ROWS = 4 };

extern const sh_kernels sh_portable;
#if defined(__x86_64__)
extern const sh_kernels sh_avx2;
extern const sh_kernels sh_avx512;
extern const sh_kernels sh_avx512_vbmi2;
#endif

/* Versions this processor can run, best first; returns how many. */
int sh_available(const sh_kernels **found, int limit);

/* Vectors of tokens in the group that starts with `remaining` tokens left. */
static inline int64_t sh_group_vectors(int64_t remaining, int64_t vector_lanes) {
    int64_t vectors = (remaining + vector_lanes - 1) / vector_lanes;
    return vectors > SH_LANE_VECTORS ? SH_LANE_VECTORS : vectors;
}

/* Compute y = x W^T. x and y are contiguous in x_type (SH_F32, SH_BF16, SH_F16).
 * Returns 0, or -1 where memory for the prepared activations is refused, or SH_SMALL for more than SH_SMALL_MOST. */
int sh_linear(const sh_kernels *isa, const sh_matrix *matrix, const void *x, int x_type, int64_t tokens, void *y,
              int threads, int strategy);

/* First row of part `part` of `parts` of about equal work; a multiple of SH_SPLIT_ROWS. */
int64_t sh_split(const sh_matrix *matrix, int part, int parts);

/* Matrices that read the same input; no rows: none. The bias may be NULL. */
typedef struct {
    sh_matrix matrix;
    const float *bias;
} sh_linear_part;

/* Rows of query, key and value (of gate and up) lie behind each other, in one matrix or in several. */
typedef struct {
    sh_linear_part query_key_value[3], output, gate_up[2], down;
    const float *input_norm, *post_norm;
    float *keys, *values; /* key_value_heads x max_tokens x head_dim, rotated already */
} sh_layer;

typedef struct {
    const sh_kernels *isa;
    int64_t layers, hidden, heads, key_value_heads, head_dim, wide, max_tokens;
    float eps;
    const float *norm, *cosines, *sines; /* max_tokens x head_dim; sines of the first half negated */
    sh_linear_part head;
    sh_layer *layer;
} sh_decoder;

/* Logits after one more token at `position` < max_tokens; embedded is its row of the embedding.
 * Returns 0, or -1 where memory for the activations is refused. */
int sh_decode(const sh_decoder *decoder, const float *embedded, int64_t position, float *logits, int threads);

/* Which strategy SH_AUTO takes. */
int sh_choose(const sh_kernels *isa, const sh_matrix *matrix, int x_type, int64_t tokens);

/* Read every byte once with wide loads, split over threads: the time no kernel can beat. Returns a checksum. */
uint64_t sh_read(const void *data, int64_t bytes, int threads);

static inline float sh_from_bf16(uint16_t value) {
    union { uint32_t u; float f; } bits = {(uint32_t)value << 16};
    return bits.f;
}

static inline uint16_t sh_to_bf16(float value) {
    union { float f; uint32_t u; } bits = {value};
    if ((bits.u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((bits.u >> 16) | 0x40); /* a NaN stays one */
    return (uint16_t)((bits.u + 0x7fffu + ((bits.u >> 16) & 1)) >> 16);
}

static inline float sh_from_f16(uint16_t value) {
    uint32_t sign = (uint32_t)(value & 0x8000) << 16, exponent = (value >> 10) & 31, fraction = value & 1023;
    union { uint32_t u; float f; } bits;
    if (exponent == 31) bits.u = sign | 0x7f800000u | fraction << 13;
    else if (exponent) bits.u = sign | (exponent + 112) << 23 | fraction << 13;
    else {
        bits.f = (float)fraction * 0x1p-24f;
        bits.u |= sign;
    }
    return bits.f;
}

static inline uint16_t sh_to_f16(float value) {
    union { float f; uint32_t u; } bits = {value}, rounded;
    uint16_t sign = (uint16_t)((bits.u >> 16) & 0x8000);
    bits.u &= 0x7fffffffu;
    if (bits.u > 0x7f800000u) return sign | 0x7e00;
    if (bits.u >= 0x477ff000u) return sign | 0x7c00; /* 65520 and more round to infinity */
    if (bits.u < 0x38800000u) {                      /* subnormal: the float adder rounds at 2^-24 */
        rounded.f = bits.f + 0.5f;
        return sign | (uint16_t)(rounded.u - 0x3f000000u);
    }
    return sign | (uint16_t)((bits.u + 0xfffu + ((bits.u >> 13) & 1) - 0x38000000u) >> 13);
}

#endif
