/* GroupNorm (Wu and He 2018) of one NHWC picture with p positions and c channels, as a scale and a shift a channel. */
#pragma once
#include "vectors.h"

/* Sums of `vectors` vectors of channels over positions, as channel_sums; `ahead` positions at a time. */
INLINE void some_sums(const int vectors, const int ahead, const float *x, int p, int c, const float *mean, float *sums) {
    vf m[4], s[4][4] = {{{0}}};
    for (int j = 0; j < vectors; j++) m[j] = mean ? load(mean + j * VL) : (vf){0};
    for (int q = 0; q < p; q += ahead)
        for (int i = 0; i < ahead && q + i < p; i++)
            for (int j = 0; j < vectors; j++) {
                vf v = load(x + (long)(q + i) * c + j * VL) - m[j];
                s[i][j] = mean ? fused(v, v, s[i][j]) : s[i][j] + v;
            }
    for (int j = 0; j < vectors; j++) store(sums + j * VL, (s[0][j] + s[1][j]) + (s[2][j] + s[3][j]));
}

/* sums (c): each channel's sum over positions of x, or of (x - mean)^2 where mean (c) is given. */
INLINE void channel_sums(const float *x, int p, int c, const float *mean, float *sums) {
    int i = 0;
    for (; i + 4 * VL <= c; i += 4 * VL) some_sums(4, 2, x + i, p, c, mean ? mean + i : 0, sums + i);
    for (; i < c; i += VL) {
        int at = i + VL <= c ? i : c - VL; /* the last vector overlaps the one before */
        some_sums(1, 4, x + at, p, c, mean ? mean + at : 0, sums + at);
    }
}

/* means (c): the sum of a group's sums over count, a group's number of elements, in each of its channels. */
INLINE void group_means(const float *sums, int c, int groups, float count, float *means) {
    int size = c / groups;
    for (int g = 0; g < groups; g++) {
        float s = 0;
        for (int i = 0; i < size; i++) s += sums[g * size + i];
        for (int i = 0; i < size; i++) means[g * size + i] = s / count;
    }
}

/* The sum of x, or of (x - mean)^2 where mean is given. */
INLINE float whole_sum(const float *x, long count, const float *mean) {
    vf s[4] = {{0}};
    float m = mean ? *mean : 0, total;
    long i = 0;
    for (; i + 4 * VL <= count; i += 4 * VL)
        for (int j = 0; j < 4; j++) {
            vf v = load(x + i + j * VL) - m;
            s[j] = mean ? fused(v, v, s[j]) : s[j] + v;
        }
    for (total = sum((s[0] + s[1]) + (s[2] + s[3])); i < count; i++)
        total += mean ? (x[i] - m) * (x[i] - m) : x[i];
    return total;
}

/* scale, shift (c) of norm(x) = x scale + shift. weight, bias (c); c at least VL. Two passes, so that the variance
 * keeps its digits where the mean is far from 0. */
static void statistics(const float *x, int p, int c, int groups, const float *weight, const float *bias, float eps,
                       float *scale, float *shift) {
    float count = (float)p * (c / groups);
    if (groups == 1) {
        float mean = whole_sum(x, (long)p * c, 0) / count, variance = whole_sum(x, (long)p * c, &mean) / count;
        for (int i = 0; i < c; i++) shift[i] = mean, scale[i] = variance;
    } else {
        channel_sums(x, p, c, 0, scale);
        group_means(scale, c, groups, count, shift);
        channel_sums(x, p, c, shift, scale);
        group_means(scale, c, groups, count, scale);
    }
    for (int i = 0; i < c; i++) {
        scale[i] = weight[i] / __builtin_sqrtf(scale[i] + eps);
        shift[i] = bias[i] - shift[i] * scale[i];
    }
}
