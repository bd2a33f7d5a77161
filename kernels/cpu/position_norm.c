/* Norms over the channels of each position of NHWC pictures. */
#include "vectors.h"

/* The sum of v, or of its squares, over c channels less m each. */
INLINE float channel_sum(const float *v, int c, float m, int squares) {
    vf s = {0};
    int i = 0;
    for (; i + VL <= c; i += VL) {
        vf a = load(v + i) - m;
        s = squares ? fused(a, a, s) : s + a;
    }
    float total = sum(s);
    for (; i < c; i++) total += squares ? (v[i] - m) * (v[i] - m) : v[i] - m;
    return total;
}

/* y = activation(n(x) weight + bias) + residual, x and y (positions, c). n(x) is x over its length or eps, whichever is
 * larger; where centred, (x - mean) / sqrt(var + eps). weight, bias (c) or 0; residual: as x, or 0. */
void position_norm(const float *x, const float *weight, const float *bias, const float *residual, float *y,
                   int positions, int c, int centred, float eps, int activation, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int p = 0; p < positions; p++) {
        const float *from = x + (long)p * c, *other = residual ? residual + (long)p * c : 0;
        float *to = y + (long)p * c;
        const float mean = centred ? channel_sum(from, c, 0, 0) / c : 0, square = channel_sum(from, c, mean, 1);
        const float length = __builtin_sqrtf(centred ? square / c + eps : square);
        const float scale = 1.0f / (!centred && length < eps ? eps : length); /* NaN stays NaN */
        for (int i = 0; i < c; i += VL) {
            const int n = c - i < VL ? c - i : VL;
            vf v = (load_some(from + i, n) - mean) * scale;
            if (weight) v = v * load_some(weight + i, n);
            if (bias) v += load_some(bias + i, n);
            v = activate(v, activation);
            if (other) v += load_some(other + i, n);
            store_some(to + i, v, n);
        }
    }
}
