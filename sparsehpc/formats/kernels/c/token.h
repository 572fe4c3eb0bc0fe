/* What lies between the products of one token; plain loops are turned into this version's vectors by the compiler.
 *
 * Included by every instruction-set version behind template.h. Sums of lanes are in another order than torch's.
 */

/* e^x within 2 units in the last place for |x| <= 87, saturated beyond; branchless (Cephes' polynomial). */
INLINE float exponential(float x) {
    x = x > 88.0f ? 88.0f : x;
    x = x < -87.0f ? -87.0f : x;
    float n = (x * 1.44269504f + 12582912.0f) - 12582912.0f; /* the adder rounds to a whole number */
    float r = x - n * 0.693359375f;
    r += n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    /* The exponent's bits out of the sum's: n is in the low bits of n + 1.5 * 2^23. */
    union { float f; uint32_t u; } scale = {n + 12582912.0f};
    scale.u = (scale.u + 127u) << 23;
    return p * scale.f;
}

/* out = x * weight / sqrt(mean(x^2) + eps) */
static void normalise(const float *x, const float *weight, int64_t width, float eps, float *out) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; i++) sum += x[i] * x[i];
    float scale = 1.0f / __builtin_sqrtf(sum / (float)width + eps);
#pragma omp simd
    for (int64_t i = 0; i < width; i++) out[i] = x[i] * scale * weight[i];
}

/* Rotary embedding of one head: the sines of the first half are negated already. */
static void rotate(const float *x, const float *cosines, const float *sines, int64_t width, float *out) {
    int64_t half = width / 2;
#pragma omp simd
    for (int64_t i = 0; i < half; i++) out[i] = x[i] * cosines[i] + x[i + half] * sines[i];
#pragma omp simd
    for (int64_t i = half; i < width; i++) out[i] = x[i] * cosines[i] + x[i - half] * sines[i];
}

INLINE float dot(const float *a, const float *b, int64_t width) {
    vec even = v_zero(), odd = v_zero();
    int64_t i = 0;
    for (; i + 2 * LANES <= width; i += 2 * LANES) {
        even = v_fma(v_load(a + i), v_load(b + i), even);
        odd = v_fma(v_load(a + i + LANES), v_load(b + i + LANES), odd);
    }
    for (; i + LANES <= width; i += LANES) even = v_fma(v_load(a + i), v_load(b + i), even);
    float sum = v_sum(v_add(even, odd));
    for (; i < width; i++) sum += a[i] * b[i];
    return sum;
}

/* Sums over all positions of a few columns stay in registers: in memory, each would wait for the one before. */
INLINE void mix(const float *scores, const float *values, int64_t seen, int64_t width, int vectors, float *out) {
    vec sums[4];
    for (int v = 0; v < vectors; v++) sums[v] = v_zero();
    for (int64_t t = 0; t < seen; t++)
        for (int v = 0; v < vectors; v++)
            sums[v] = v_fma(v_set(scores[t]), v_load(values + t * width + v * LANES), sums[v]);
    for (int v = 0; v < vectors; v++) v_store(out + v * LANES, sums[v]);
}

/* One query over `seen` positions: out = softmax(query keys / sqrt(width)) values. */
static void attend(const float *query, const float *keys, const float *values, int64_t seen, int64_t width,
                   float *scores, float *out) {
    float scale = 1.0f / __builtin_sqrtf((float)width), largest = -__builtin_inff(), sum = 0.0f;
    for (int64_t t = 0; t < seen; t++) {
        scores[t] = dot(query, keys + t * width, width) * scale;
        largest = scores[t] > largest ? scores[t] : largest;
    }
#pragma omp simd reduction(+ : sum)
    for (int64_t t = 0; t < seen; t++) sum += scores[t] = exponential(scores[t] - largest);
#pragma omp simd
    for (int64_t t = 0; t < seen; t++) scores[t] /= sum;
    int64_t i = 0;
    for (; i + 4 * LANES <= width; i += 4 * LANES) mix(scores, values + i, seen, width, 4, out + i);
    for (; i + LANES <= width; i += LANES) mix(scores, values + i, seen, width, 1, out + i);
    for (; i < width; i++) {
        out[i] = 0.0f;
        for (int64_t t = 0; t < seen; t++) out[i] += scores[t] * values[t * width + i];
    }
}

/* out = silu(gate) * up */
static void gate_up(const float *gate, const float *up, int64_t width, float *out) {
#pragma omp simd
    for (int64_t i = 0; i < width; i++) out[i] = gate[i] / (1.0f + exponential(-gate[i])) * up[i];
}
