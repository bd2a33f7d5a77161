/* GroupNorm of NHWC pictures, with an activation after it. */
#include "norm.h"

INLINE void scale_shift(const float *x, float *y, int p, int c, const float *scale, const float *shift,
                        int activation) {
    for (int q = 0; q < p; q++, x += c, y += c)
        for (int i = 0; i < c; i += VL) {
            int at = i + VL <= c ? i : c - VL;
            store(y + at, activate(fused(load(x + at), load(scale + at), load(shift + at)), activation));
        }
}

/* x, y (n, p, c), not overlapping; weight, bias (c), or of each picture, c apart (apart = c, else 0); c at least VL.
 * space: 2 n c floats. */
void group_norm(const float *x, float *y, int n, int p, int c, int groups, const float *weight, const float *bias,
                int apart, float eps, int activation, int threads, float *space) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int b = 0; b < n; b++) {
        const float *from = x + (long)b * p * c;
        float *to = y + (long)b * p * c, *scale = space + (long)2 * b * c, *shift = scale + c;
        statistics(from, p, c, groups, weight + (long)b * apart, bias + (long)b * apart, eps, scale, shift);
        scale_shift(from, to, p, c, scale, shift, activation);
    }
}
