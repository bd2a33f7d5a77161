/* The exponentials of a softmax, each less the maximum, so that the largest is 1. */
#pragma once
#include "vectors.h"

/* Of n entries side by side. Where one is NaN, NaN or the maximum of others. */
INLINE float row_maximum(const float *x, int n) {
    const int whole = n / VL * VL, rest = n - whole;
    vf top = all(x[0]);
    for (int i = 0; i < whole; i += VL) top = maximum(load(x + i), top);
    if (rest) top = maximum(only(load_some(x + whole, rest), rest, top), top);
    return largest(top);
}

/* e^x of x up to 0: 0 below -87, so that what a mask took out has no share. */
INLINE vf vanishing(vf x) { return pick(x < -87.0f, (vf){0}, exponential(x)); }

/* to <- e^(scale (x - top)) of n entries side by side; returns their sum. scale is above 0, and top the maximum; x may
 * be `to`. Of several rows first all maxima and then all exponentials, so that one row's sums do not keep the processor
 * waiting. */
INLINE float row_exponentials(const float *x, float *to, int n, float scale, float top) {
    const int whole = n / VL * VL, rest = n - whole;
    vf total = {0};
    for (int i = 0; i < whole; i += VL) {
        const vf e = vanishing(scale * (load(x + i) - top));
        store(to + i, e);
        total += e;
    }
    if (rest) {
        const vf e = vanishing(scale * (load_some(x + whole, rest) - top));
        store_some(to + whole, e, rest);
        total += only(e, rest, (vf){0});
    }
    return sum(total);
}

INLINE void row_scale(float *x, int n, float by) {
    const int whole = n / VL * VL, rest = n - whole;
    for (int i = 0; i < whole; i += VL) store(x + i, load(x + i) * by);
    if (rest) store_some(x + whole, load_some(x + whole, rest) * by, rest);
}

/* to <- e^(x - x's maximum) of the first `wide` entries of n vectors, which lie x_step and to_step apart; returns the
 * sum. Maximum and sum are those of each entry over the vectors. x may be `to`. */
INLINE vf column_exponentials(const float *x, int64_t x_step, float *to, int64_t to_step, int n, int wide) {
    vf top = load_some(x, wide), total = {0};
    for (int q = 1; q < n; q++) top = maximum(load_some(x + q * x_step, wide), top);
    for (int q = 0; q < n; q++) {
        const vf e = vanishing(load_some(x + q * x_step, wide) - top);
        store_some(to + q * to_step, e, wide);
        total += e;
    }
    return total;
}
