/* GroupNorm (Wu and He 2018) of NHWC images, statistics in two passes, an activation after it. */
#include "vectors.h"

/* Sum over p rows of c values of f(value), for each channel. f: the value, or its squared distance from mean. */
INLINE void channel_sums(const float *x, int p, int c, const float *mean, float *sums) {
    for (int i = 0; i < c; i += VL) {
        int at = i + VL <= c ? i : c - VL; /* the last vector overlaps the one before */
        vf m = mean ? load(mean + at) : (vf){0}, s[4] = {{0}};
        const float *from = x + at;
        int q = 0;
        for (; q + 4 <= p; q += 4)
            for (int j = 0; j < 4; j++) {
                vf v = load(from + (long)(q + j) * c) - m;
                s[j] += mean ? v * v : v;
            }
        for (; q < p; q++) {
            vf v = load(from + (long)q * c) - m;
            s[0] += mean ? v * v : v;
        }
        store(sums + at, (s[0] + s[1]) + (s[2] + s[3]));
    }
}

/* For each group its mean of the sums, count being a group's elements, written to each of its channels. */
INLINE void group_means(const float *sums, int c, int groups, float count, float *means) {
    int size = c / groups;
    for (int g = 0; g < groups; g++) {
        float s = 0;
        for (int i = 0; i < size; i++) s += sums[g * size + i];
        for (int i = 0; i < size; i++) means[g * size + i] = s / count;
    }
}

INLINE void scale_shift(const float *x, float *y, int p, int c, const float *scale, const float *shift,
                        const int kind) {
    for (int q = 0; q < p; q++, x += c, y += c)
        for (int i = 0; i < c; i += VL) {
            int at = i + VL <= c ? i : c - VL;
            store(y + at, activate(load(x + at) * load(scale + at) + load(shift + at), kind));
        }
}

/* x, y (n, p, c), y another place than x; weight, bias (c); c at least VL; space: threads times 4 c floats. */
void group_norm(const float *x, float *y, int n, int p, int c, int groups, const float *weight, const float *bias,
                float eps, int kind, int threads, float *space) {
    float count = (float)p * (c / groups);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int part = 0; part < threads; part++) {
        float *sums = space + (long)part * 4 * c, *mean = sums + c, *scale = mean + c, *shift = scale + c;
        for (long b = (long)n * part / threads; b < (long)n * (part + 1) / threads; b++) {
            const float *from = x + b * p * c;
            float *to = y + b * p * c;
            channel_sums(from, p, c, 0, sums);
            group_means(sums, c, groups, count, mean);
            channel_sums(from, p, c, mean, sums);
            group_means(sums, c, groups, count, scale); /* the variance, for now */
            for (int i = 0; i < c; i++) {
                scale[i] = weight[i] / __builtin_sqrtf(scale[i] + eps);
                shift[i] = bias[i] - mean[i] * scale[i];
            }
            switch (kind) {
            case RELU: scale_shift(from, to, p, c, scale, shift, RELU); break;
            case SILU: scale_shift(from, to, p, c, scale, shift, SILU); break;
            case GELU: scale_shift(from, to, p, c, scale, shift, GELU); break;
            case GELU_TANH: scale_shift(from, to, p, c, scale, shift, GELU_TANH); break;
            default: scale_shift(from, to, p, c, scale, shift, NONE);
            }
        }
    }
}
