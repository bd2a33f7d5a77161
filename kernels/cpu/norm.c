/* GroupNorm (Wu and He 2018) of NHWC pictures of p positions and c channels: statistics as a scale and a shift of each
 * channel, and their application with an activation. A position lies ld floats after the one before. */
#include "plan.h"
#include "vectors.h"

/* Sums of `vectors` vectors of channels over positions, as channel_sums; `ahead` positions at a time. */
INLINE void some_sums(const int vectors, const int ahead, const float *x, int p, long ld, int wide, const float *mean,
                      float *sums) {
    vf m[4], s[4][4] = {{{0}}};
    for (int j = 0; j < vectors; j++) m[j] = mean ? load_some(mean + j * VL, wide) : (vf){0};
    for (int q = 0; q < p; q += ahead)
        for (int i = 0; i < ahead && q + i < p; i++)
#pragma GCC unroll 4
            for (int j = 0; j < vectors; j++) {
                vf v = load_some(x + (q + i) * ld + j * VL, wide) - m[j];
                s[i][j] = mean ? fused(v, v, s[i][j]) : s[i][j] + v;
            }
    for (int j = 0; j < vectors; j++) store_some(sums + j * VL, (s[0][j] + s[1][j]) + (s[2][j] + s[3][j]), wide);
}

/* sums (c): each channel's sum over positions of x, or of (x - mean)^2 where mean (c) is given. */
static void channel_sums(const float *x, int p, int c, long ld, const float *mean, float *sums) {
    int i = 0;
    for (; i + 4 * VL <= c; i += 4 * VL) some_sums(4, 2, x + i, p, ld, VL, mean ? mean + i : 0, sums + i);
    for (; i < c; i += VL) {
        int at = vector_at(i, c);
        some_sums(1, 4, x + at, p, ld, vector_of(c), mean ? mean + at : 0, sums + at);
    }
}

/* means (c): the sum of a group's sums over count, a group's number of elements, in each of its channels. */
static void group_means(const float *sums, int c, int groups, float count, float *means) {
    int size = c / groups;
    for (int g = 0; g < groups; g++) {
        float s = 0;
        for (int i = 0; i < size; i++) s += sums[g * size + i];
        for (int i = 0; i < size; i++) means[g * size + i] = s / count;
    }
}

int64_t norm_statistics_space(const union number *number) { return 0; }

/* A scale and a shift (2, c) for each of n pictures, so that its norm is x scale + shift: of (x - mean) / sqrt(var + eps)
 * times weight plus bias, times 1 + gain plus offset. Two passes, so that the variance keeps its digits where the mean is
 * far from 0.
 *
 * Operands: x; weight, bias, gain, offset, each (c) or 0; the result (n, 2, c). Numbers: n, p, c, ld, groups, eps; how
 * far the weights and biases of a picture lie after those of the one before, 0 for the same; likewise for gain; for
 * offset. */
void norm_statistics(const struct call *call) {
    const union number *number = call->number;
    const int n = (int)number[0].i, p = (int)number[1].i, c = (int)number[2].i, groups = (int)number[4].i;
    const int64_t ld = number[3].i;
    const float eps = (float)number[5].r, count = (float)p * (c / groups);
    for (int64_t b = share(call, n, 0); b < share(call, n, 1); b++) {
        const float *x = call->at[0] + b * p * ld, *weight = call->at[1], *bias = call->at[2], *gain = call->at[3],
                    *offset = call->at[4];
        float *scale = call->at[5] + b * 2 * c, *shift = scale + c;
        channel_sums(x, p, c, ld, 0, scale);
        group_means(scale, c, groups, count, shift);
        channel_sums(x, p, c, ld, shift, scale);
        group_means(scale, c, groups, count, scale);
        for (int i = 0; i < c; i++) {
            float k = 1.0f / __builtin_sqrtf(scale[i] + eps), add = 0;
            if (weight) k *= weight[b * number[6].i + i];
            if (bias) add = bias[b * number[6].i + i];
            if (gain) k *= 1 + gain[b * number[7].i + i], add *= 1 + gain[b * number[7].i + i];
            if (offset) add += offset[b * number[8].i + i];
            scale[i] = k;
            shift[i] = add - shift[i] * k;
        }
    }
}

int64_t scale_shift_space(const union number *number) { return 0; }

/* y = activation(x scale + shift). Operands: x; scale and shift (n, 2, c); y. Numbers: n, p, c, x's ld, y's ld, the
 * activation. */
void scale_shift(const struct call *call) {
    const union number *number = call->number;
    const int n = (int)number[0].i, p = (int)number[1].i, c = (int)number[2].i, activation = (int)number[5].i;
    const int64_t ld = number[3].i, to = number[4].i;
    for (int64_t q = share(call, (int64_t)n * p, 0); q < share(call, (int64_t)n * p, 1); q++) {
        const float *x = call->at[0] + q * ld, *scale = call->at[1] + q / p * 2 * c, *shift = scale + c;
        float *y = call->at[2] + q * to;
        for (int i = 0; i < c; i += VL) {
            const int at = vector_at(i, c), wide = vector_of(c);
            vf v = fused(load_some(x + at, wide), load_some(scale + at, wide), load_some(shift + at, wide));
            store_some(y + at, activate(v, activation), wide);
        }
    }
}
