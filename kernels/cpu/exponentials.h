/* The exponentials of a softmax, each less the maximum, so that the largest is 1. */
#pragma once
#include "vectors.h"

/* to <- e^(scale (x - x's maximum)) of n entries side by side; returns their sum. scale is above 0; x may be `to`. */
INLINE float row_exponentials(const float *x, float *to, int n, float scale) {
    vf top = all(x[0]), total = {0};
    const int whole = n / VL * VL, rest = n - whole;
    for (int i = 0; i < whole; i += VL) top = maximum(load(x + i), top);
    if (rest) top = maximum(only(load_some(x + whole, rest), rest, top), top);
    const float most = largest(top);
    for (int i = 0; i < whole; i += VL) {
        const vf e = exponential(scale * (load(x + i) - most));
        store(to + i, e);
        total += e;
    }
    if (rest) {
        const vf e = exponential(scale * (load_some(x + whole, rest) - most));
        store_some(to + whole, e, rest);
        total += only(e, rest, (vf){0});
    }
    return sum(total);
}

/* The same of the first `wide` entries of n vectors, which lie x_step and to_step apart: an entry's maximum and its sum
 * are those over the vectors. */
INLINE vf column_exponentials(const float *x, int64_t x_step, float *to, int64_t to_step, int n, int wide) {
    vf top = load_some(x, wide), total = {0};
    for (int q = 1; q < n; q++) top = maximum(load_some(x + q * x_step, wide), top);
    for (int q = 0; q < n; q++) {
        const vf e = exponential(load_some(x + q * x_step, wide) - top);
        store_some(to + q * to_step, e, wide);
        total += e;
    }
    return total;
}
