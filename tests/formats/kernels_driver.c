/* Runs every kernel on arrays of exactly the size they need, so that address and undefined-behaviour sanitizers see
 * each read beyond them; and compares with double precision. Prints the number of products checked. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

static uint64_t state = 88172645463325252ull;
static uint64_t next_random(void) {
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}
static double uniform(void) { return (double)(next_random() >> 11) * 0x1p-53; }

/* Exactly so many bytes; an empty array gets no memory at all, like an empty tensor. */
static void *exact(int64_t bytes) { return bytes ? malloc((size_t)bytes) : NULL; }

static double store(void *values, int type, int64_t at, double value) {
    if (type == SH_F32) return ((float *)values)[at] = (float)value;
    if (type == SH_BF16) return sh_from_bf16(((uint16_t *)values)[at] = sh_to_bf16((float)value));
    if (type == SH_F16) return sh_from_f16(((uint16_t *)values)[at] = sh_to_f16((float)value));
    return ((int8_t *)values)[at] = (int8_t)(int)(value * 100);
}

typedef struct {
    sh_matrix m;
    double *dense; /* rows x columns */
    void *values, *mask, *positions, *indices, *offsets, *scales;
} built;

static built build(int layout, int type, int64_t rows, int64_t columns, double density) {
    built b = {.m = {.layout = layout, .type = type, .rows = rows, .columns = columns}};
    int64_t words = (columns + 63) / 64, blocks = (columns + 31) / 32, quarter = layout == SH_ONE_OF_FOUR;
    int64_t keep = layout == SH_KEEP ? columns / 2 : 0, count = 0;
    char *kept = calloc((size_t)(rows * columns + 1), 1);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c++) {
            if (layout == SH_DENSE) kept[r * columns + c] = 1;
            else if (layout == SH_KEEP) kept[r * columns + c] = (c & 1) == (r & 1);
            else if (quarter) kept[r * columns + c] = c % 4 == (c / 4 + r) % 4;
            else kept[r * columns + c] = uniform() < density;
            count += kept[r * columns + c];
        }
    b.dense = calloc((size_t)(rows * columns + 1), sizeof(double));
    if (layout == SH_BITMAP || layout == SH_KEEP) b.mask = exact(rows * words * 8);
    if (b.mask) memset(b.mask, 0, (size_t)(rows * words * 8));
    if (quarter) b.positions = exact(rows * ((columns + 15) / 16));
    if (b.positions) memset(b.positions, 0, (size_t)(rows * ((columns + 15) / 16)));
    if (layout == SH_INDEX16) b.indices = exact(count * 2);
    if (layout == SH_BITMAP || layout == SH_INDEX16) b.offsets = exact((rows + 1) * 4);
    if (type == SH_I8) b.scales = exact(rows * 4);
    if (type == SH_Q4) b.scales = exact(rows * blocks * 4);
    int64_t total = count;
    if (type == SH_Q4) {
        total = 0;
        if (layout == SH_DENSE) total = rows * blocks * 16;
        else
            for (int64_t r = 0; r < rows; r++) {
                int64_t in_row = 0;
                for (int64_t c = 0; c < columns; c++) in_row += kept[r * columns + c];
                total += (in_row + 1) / 2;
            }
    }
    b.values = exact(total * (type == SH_F32 ? 4 : type == SH_BF16 || type == SH_F16 ? 2 : 1));
    if (b.values && type == SH_Q4) memset(b.values, 0, (size_t)total);
    int64_t at = 0, byte = 0;
    for (int64_t r = 0; r < rows; r++) {
        if (b.offsets) ((int32_t *)b.offsets)[r] = (int32_t)(type == SH_Q4 ? byte : at);
        float row_scale = 0.01f * (float)(1 + r % 3);
        if (type == SH_I8) ((float *)b.scales)[r] = row_scale;
        if (type == SH_Q4)
            for (int64_t k = 0; k < 2 * blocks; k++)
                ((uint16_t *)b.scales)[r * 2 * blocks + k] = sh_to_f16((float)(k & 1 ? -0.5 : 0.0625) * (float)(1 + k % 5));
        int64_t code = layout == SH_DENSE ? r * blocks * 32 : 2 * byte;
        for (int64_t c = 0; c < columns; c++) {
            if (!kept[r * columns + c]) continue;
            double value = 2 * uniform() - 1;
            if (type == SH_Q4) {
                uint8_t q = (uint8_t)(next_random() & 15);
                ((uint8_t *)b.values)[code >> 1] |= (uint8_t)(q << (4 * (code & 1)));
                const uint16_t *grid = (const uint16_t *)b.scales + (r * blocks + c / 32) * 2;
                value = (double)sh_from_f16(grid[0]) * q + (double)sh_from_f16(grid[1]);
                code++;
            } else {
                value = store(b.values, type, at, value) * (type == SH_I8 ? (double)row_scale : 1.0);
            }
            if (b.mask) ((uint64_t *)b.mask)[r * words + c / 64] |= 1ull << (c % 64);
            if (b.positions) {
                uint8_t *p = (uint8_t *)b.positions + r * ((columns + 15) / 16) + c / 16;
                *p = (uint8_t)(*p | (c % 4) << (2 * (c / 4 % 4)));
            }
            if (b.indices) ((uint16_t *)b.indices)[at] = (uint16_t)c;
            b.dense[r * columns + c] = value;
            at++;
        }
        if (type == SH_Q4 && layout != SH_DENSE) byte = (code + 1) / 2;
    }
    if (b.offsets) ((int32_t *)b.offsets)[rows] = (int32_t)(type == SH_Q4 ? byte : at);
    b.m.values = b.values;
    b.m.mask = b.mask;
    b.m.positions = b.positions;
    b.m.indices = b.indices;
    b.m.offsets = b.offsets;
    b.m.scales = b.scales;
    b.m.total = total;
    b.m.per_row = layout == SH_DENSE ? columns : layout == SH_KEEP ? keep : quarter ? columns / 4 : 0;
    free(kept);
    return b;
}

static void release(built *b) {
    void *parts[] = {b->dense, b->values, b->mask, b->positions, b->indices, b->offsets, b->scales};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) free(parts[i]);
}

static int check(const sh_kernels *isa, const built *b, int x_type, int64_t tokens, int strategy) {
    int64_t rows = b->m.rows, columns = b->m.columns, size = x_type == SH_F32 ? 4 : 2;
    void *x = exact(tokens * columns * size), *y = exact(tokens * rows * size);
    double *given = malloc((size_t)(tokens * columns) * sizeof(double));
    for (int64_t i = 0; i < tokens * columns; i++) given[i] = store(x, x_type, i, 2 * uniform() - 1);
    int bad = sh_linear(isa, &b->m, x, x_type, tokens, y, 2, strategy) != 0;
    for (int64_t t = 0; t < tokens && !bad; t++)
        for (int64_t r = 0; r < rows && !bad; r++) {
            double sum = 0, magnitude = 0;
            for (int64_t c = 0; c < columns; c++) {
                double product = given[t * columns + c] * b->dense[r * columns + c];
                sum += product;
                magnitude += fabs(product);
            }
            double got = x_type == SH_F32    ? ((float *)y)[t * rows + r]
                         : x_type == SH_BF16 ? sh_from_bf16(((uint16_t *)y)[t * rows + r])
                                             : sh_from_f16(((uint16_t *)y)[t * rows + r]);
            double rounding = x_type == SH_F32 ? 0x1p-23 : x_type == SH_BF16 ? 0x1p-8 : 0x1p-10;
            if (!(fabs(got - sum) <= ((double)columns + 6) * 0x1p-24 * magnitude + rounding * fabs(sum) + 1e-7)) {
                fprintf(stderr, "%s layout %d type %d, %lld x %lld, x %d, tokens %lld, strategy %d: %g, not %g\n",
                        isa->name, b->m.layout, b->m.type, (long long)rows, (long long)columns, x_type,
                        (long long)tokens, strategy, got, sum);
                bad = 1;
            }
        }
    free(x);
    free(y);
    free(given);
    return bad;
}

static float *random_floats(int64_t count, double scale) {
    float *made = exact(count * 4);
    for (int64_t i = 0; i < count; i++) made[i] = (float)(scale * (2 * uniform() - 1));
    return made;
}

static int near(const char *isa, const char *what, const float *got, const double *want, int64_t count, double tolerance) {
    for (int64_t i = 0; i < count; i++)
        if (!(fabs((double)got[i] - want[i]) <= tolerance * (1 + fabs(want[i])))) {
            fprintf(stderr, "%s %s: %.9g at %lld, not %.9g\n", isa, what, (double)got[i], (long long)i, want[i]);
            return 1;
        }
    return 0;
}

/* Norm, activation, attention of `seen` positions: widths that fill no vector, scores far apart. */
static int check_between(const sh_kernels *isa, int64_t width, int64_t seen) {
    float *x = random_floats(width, 3), *weight = random_floats(width, 2), *gate = random_floats(width, 95);
    float *keys = random_floats(seen * width, 9), *values = random_floats(seen * width, 1);
    float *out = exact(width * 4), *scores = exact(seen * 4);
    double *want = malloc((size_t)width * sizeof(double)), *p = malloc((size_t)seen * sizeof(double)), sum = 0, most = -1e30;
    for (int64_t i = 0; i < width; i++) sum += (double)x[i] * x[i];
    for (int64_t i = 0; i < width; i++) want[i] = x[i] / sqrt(sum / (double)width + 1e-5) * weight[i];
    isa->normalise(x, weight, width, 1e-5f, out);
    int bad = near(isa->name, "norm", out, want, width, 1e-5);
    for (int64_t i = 0; i < width; i++) want[i] = gate[i] / (1 + exp(-(double)gate[i])) * x[i];
    isa->gate_up(gate, x, width, out);
    bad |= near(isa->name, "activation", out, want, width, 1e-6);
    sum = 0;
    for (int64_t t = 0; t < seen; t++) {
        p[t] = 0;
        for (int64_t i = 0; i < width; i++) p[t] += (double)x[i] * keys[t * width + i] / sqrt((double)width);
        most = p[t] > most ? p[t] : most;
    }
    for (int64_t t = 0; t < seen; t++) sum += p[t] = exp(p[t] - most);
    for (int64_t i = 0; i < width; i++) {
        want[i] = 0;
        for (int64_t t = 0; t < seen; t++) want[i] += p[t] / sum * values[t * width + i];
    }
    isa->attend(x, keys, values, seen, width, scores, out);
    bad |= near(isa->name, "attention", out, want, width, 1e-4);
    void *all[] = {x, weight, gate, keys, values, out, scores, want, p};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    return bad;
}

/* A whole token on arrays of exactly their size: threads must agree, and nothing is read or written beyond. */
static int check_decoder(const sh_kernels *isa) {
    enum { HIDDEN = 36, HEADS = 6, GROUPS = 3, WIDTH = 6, WIDE = 70, TOKENS = 5, WORDS = 50, LAYERS = 2, KINDS = 7 };
    static const int64_t sizes[KINDS][2] = {{HEADS * WIDTH, HIDDEN}, {GROUPS * WIDTH, HIDDEN}, {GROUPS * WIDTH, HIDDEN},
                                            {HIDDEN, HEADS * WIDTH}, {WIDE, HIDDEN}, {WIDE, HIDDEN}, {HIDDEN, WIDE}};
    static const int layouts[] = {SH_DENSE, SH_BITMAP, SH_INDEX16};
    built made[LAYERS * KINDS + 1];
    sh_layer layers[LAYERS];
    float *bias = random_floats(HIDDEN, 1), *norm = random_floats(HIDDEN, 1);
    float *cosines = random_floats(TOKENS * WIDTH, 1), *sines = random_floats(TOKENS * WIDTH, 1);
    float *embedded = random_floats(HIDDEN, 1), logits[2][TOKENS][WORDS];
    memset(layers, 0, sizeof layers);
    for (int n = 0; n < LAYERS; n++) {
        sh_linear_part *parts[KINDS] = {layers[n].query_key_value, layers[n].query_key_value + 1,
                                        layers[n].query_key_value + 2, &layers[n].output, layers[n].gate_up,
                                        layers[n].gate_up + 1, &layers[n].down};
        for (int k = 0; k < KINDS; k++) {
            made[n * KINDS + k] = build(layouts[(n + k) % 3], SH_F32, sizes[k][0], sizes[k][1], 0.6);
            parts[k]->matrix = made[n * KINDS + k].m;
        }
        layers[n].output.bias = bias;
        layers[n].input_norm = layers[n].post_norm = norm;
        layers[n].keys = exact(GROUPS * TOKENS * WIDTH * 4);
        layers[n].values = exact(GROUPS * TOKENS * WIDTH * 4);
    }
    made[LAYERS * KINDS] = build(SH_DENSE, SH_F32, WORDS, HIDDEN, 1);
    sh_decoder decoder = {.isa = isa, .layers = LAYERS, .hidden = HIDDEN, .heads = HEADS, .key_value_heads = GROUPS,
                          .head_dim = WIDTH, .wide = WIDE, .max_tokens = TOKENS, .eps = 1e-5f, .norm = norm,
                          .cosines = cosines, .sines = sines, .head = {.matrix = made[LAYERS * KINDS].m}, .layer = layers};
    int bad = 0;
    for (int threads = 1; threads <= 2; threads++)
        for (int64_t position = 0; position < TOKENS; position++)
            bad |= sh_decode(&decoder, embedded, position, logits[threads - 1][position], threads);
    if (bad || memcmp(logits[0], logits[1], sizeof logits[0])) {
        fprintf(stderr, "%s: one thread and two decode differently\n", isa->name);
        bad = 1;
    }
    for (int i = 0; i <= LAYERS * KINDS; i++) release(made + i);
    for (int n = 0; n < LAYERS; n++) {
        free(layers[n].keys);
        free(layers[n].values);
    }
    void *all[] = {bias, norm, cosines, sines, embedded};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    return bad;
}

int main(int argc, char **argv) {
    static const int64_t widths[] = {1, 7, 16, 33, 63, 64, 65, 100, 129, 1090};
    static const int64_t token_counts[] = {1, 2, 4, 5, 17, 66};
    const sh_kernels *found[8];
    int versions = sh_available(found, 8), checked = 0;
    for (int v = 0; v < versions; v++) {
        if (argc > 1 && strcmp(argv[1], found[v]->name)) continue;
        for (int64_t width = 2; width < 150; width += 6)
            if (check_between(found[v], width, 1 + width % 9)) return 1;
        if (check_decoder(found[v])) return 1;
        for (int layout = SH_DENSE; layout <= SH_INDEX16; layout++)
            for (int type = SH_F32; type <= SH_Q4; type++) {
                if (type >= SH_I8 && layout != SH_DENSE && layout != SH_BITMAP) continue;
                for (size_t i = 0; i < sizeof widths / sizeof *widths; i++) {
                    int64_t columns = widths[i];
                    if (layout == SH_KEEP) columns = (columns + 1) / 2 * 2;
                    if (layout == SH_ONE_OF_FOUR) columns = (columns + 3) / 4 * 4;
                    /* The last: rows beside each other, whole blocks of them and some left over. */
                    static const double densities[] = {0.4, 1.0, 0.0, 0.2};
                    static const int64_t rows[] = {1, 7, 1, 15};
                    for (int part = 0; part < 4; part++) {
                        built b = build(layout, type, rows[part], columns, densities[part]);
                        for (size_t t = 0; t < sizeof token_counts / sizeof *token_counts; t++)
                            for (int strategy = SH_AUTO; strategy <= SH_TILE; strategy++) {
                                if (strategy == SH_SMALL && token_counts[t] > SH_SMALL_MOST) continue;
                                if (strategy == SH_LANES && layout == SH_DENSE) continue;
                                if (check(found[v], &b, (int)(t + i) % 3, token_counts[t], strategy)) return 1;
                                checked++;
                            }
                        release(&b);
                    }
                }
            }
    }
    uint64_t words[67];
    uint64_t sum = 0;
    for (int i = 0; i < 67; i++) sum ^= words[i] = next_random();
    if (sh_read(words, sizeof words, 2) != sum) {
        fprintf(stderr, "the streamed read missed a word\n");
        return 1;
    }
    printf("%d\n", checked);
    return 0;
}
