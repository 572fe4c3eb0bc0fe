/* One token through all layers of a Llama-like decoder in one parallel region: float32, batch 1.
 *
 * Threads share the products by rows and attention by heads, and wait for each other five times a layer. What is
 * short (norms, the activation) every thread computes for itself rather than waiting for another.
 */
#include "kernels.h"

#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

static int64_t whole_words(int64_t columns) { return (columns + SH_WORD - 1) / SH_WORD * SH_WORD; }
static int64_t whole_lines(int64_t floats) { return (floats + 15) / 16 * 16; }
static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

/* Kernels multiply whole words: behind the last column there must be zeros. */
static void end_with_zeros(float *row, int64_t columns) {
    memset(row + columns, 0, (size_t)(whole_words(columns) - columns) * sizeof(float));
}

/* This thread's rows of a product of `count` matrices that read the same input, one behind the other in `out`. */
static void multiply(const sh_kernels *isa, const sh_linear_part *parts, int count, const float *in, float *out,
                     int thread, int threads, float *scratch, float *added_to) {
    for (int i = 0; i < count; i++) {
        const sh_matrix *m = &parts[i].matrix;
        if (!m->rows) continue;
        sh_work work = {.rows = in, .tokens = 1, .padded_columns = whole_words(m->columns), .y = out,
                        .scratch = scratch};
        int64_t first = sh_split(m, thread, threads), last = sh_split(m, thread + 1, threads);
        if (first < last) isa->small(m, &work, first, last);
        if (parts[i].bias)
            for (int64_t r = first; r < last; r++) out[r] += parts[i].bias[r];
        if (added_to)
            for (int64_t r = first; r < last; r++) added_to[r] += out[r];
        out += m->rows;
    }
}

typedef struct {
    float *x, *mixed, *seen, *wide; /* shared */
    float *input, *scores, *query, *scratch; /* this thread's */
} buffers;

/* The heads of this thread: rotate, write the new key and value, attend. */
static void attention(const sh_decoder *d, const sh_layer *layer, int64_t position, const buffers *b, int thread,
                      int threads) {
    int64_t width = d->head_dim, group = d->heads / d->key_value_heads;
    const float *cosines = d->cosines + position * width, *sines = d->sines + position * width;
    /* Whole groups: the thread that writes a key is the one that reads it. */
    int64_t first = d->key_value_heads * thread / threads, last = d->key_value_heads * (thread + 1) / threads;
    for (int64_t g = first; g < last; g++) {
        float *keys = layer->keys + g * d->max_tokens * width, *values = layer->values + g * d->max_tokens * width;
        d->isa->rotate(b->mixed + (d->heads + g) * width, cosines, sines, width, keys + position * width);
        memcpy(values + position * width, b->mixed + (d->heads + d->key_value_heads + g) * width,
               (size_t)width * sizeof(float));
        for (int64_t h = g * group; h < (g + 1) * group; h++) {
            d->isa->rotate(b->mixed + h * width, cosines, sines, width, b->query);
            d->isa->attend(b->query, keys, values, position + 1, width, b->scores, b->seen + h * width);
        }
    }
}

#ifdef _OPENMP
#define WAIT _Pragma("omp barrier")
#else
#define WAIT
#endif

static void token(const sh_decoder *d, int64_t position, const buffers *b, float *logits, int thread, int threads) {
    for (int64_t n = 0; n < d->layers; n++) {
        const sh_layer *layer = d->layer + n;
        d->isa->normalise(b->x, layer->input_norm, d->hidden, d->eps, b->input);
        end_with_zeros(b->input, d->hidden);
        multiply(d->isa, layer->query_key_value, 3, b->input, b->mixed, thread, threads, b->scratch, NULL);
        WAIT
        attention(d, layer, position, b, thread, threads);
        WAIT
        multiply(d->isa, &layer->output, 1, b->seen, b->mixed, thread, threads, b->scratch, b->x);
        WAIT
        d->isa->normalise(b->x, layer->post_norm, d->hidden, d->eps, b->input);
        end_with_zeros(b->input, d->hidden);
        multiply(d->isa, layer->gate_up, 2, b->input, b->wide, thread, threads, b->scratch, NULL);
        WAIT
        d->isa->gate_up(b->wide, b->wide + d->wide, d->wide, b->input);
        end_with_zeros(b->input, d->wide);
        multiply(d->isa, &layer->down, 1, b->input, b->mixed, thread, threads, b->scratch, b->x);
        WAIT
    }
    d->isa->normalise(b->x, d->norm, d->hidden, d->eps, b->input);
    end_with_zeros(b->input, d->hidden);
    multiply(d->isa, &d->head, 1, b->input, logits, thread, threads, b->scratch, NULL);
}

int sh_decode(const sh_decoder *d, const float *embedded, int64_t position, float *logits, int threads) {
    if (threads < 1) threads = 1;
#ifndef _OPENMP
    threads = 1;
#endif
    int64_t heads = d->heads * d->head_dim, both = heads + 2 * d->key_value_heads * d->head_dim;
    int64_t x = whole_words(d->hidden), mixed = whole_words(larger(both, d->hidden)), seen = whole_words(heads);
    int64_t wide = whole_words(2 * d->wide), input = whole_words(larger(d->hidden, d->wide));
    int64_t own = input + larger(input, seen) + whole_lines(d->max_tokens) + whole_lines(d->head_dim);
    int64_t bytes = (x + mixed + seen + wide + own * threads) * (int64_t)sizeof(float);
    float *room = aligned_alloc(64, (size_t)bytes);
    if (!room) return -1;
    memset(room, 0, (size_t)bytes);
    memcpy(room, embedded, (size_t)d->hidden * sizeof(float));
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
#endif
    {
        int thread = 0, all = 1;
#ifdef _OPENMP
        thread = omp_get_thread_num();
        all = omp_get_num_threads();
#endif
        float *mine = room + x + mixed + seen + wide + own * thread, *scores = mine + input + larger(input, seen);
        buffers b = {room, room + x, room + x + mixed, room + x + mixed + seen,
                     mine, scores, scores + whole_lines(d->max_tokens), mine + input};
        token(d, position, &b, logits, thread, all);
    }
    free(room);
    return 0;
}
