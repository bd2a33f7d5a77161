/* softmax(scale q k^T) v, head by head: Vaswani et al., "Attention is all you need" (2017), eq. 1. */
#include "product.h"

enum { QUERIES = 2 * ROWS }; /* at a time, against all keys */

/* Where the element (picture, head, position, channel) lies. */
struct places {
    long picture, head, position, channel;
};

long softmax_attention_space(int keys, int d, int e, int threads) {
    const long columns = rounded_up(keys), wide = rounded_up(e);
    return threads * (d * columns + keys * wide + QUERIES * (d + columns + wide));
}

/* The (rows, columns) matrix of these strides in the panels of product_panels, with zeros up to a whole vector. */
SHARED void pack(const float *from, int rows, int columns, long row, long column, float *to) {
    for (int j = 0; j < columns; j += 2 * VL) {
        const int wide = columns - j > VL ? 2 * VL : VL, many = columns - j < wide ? columns - j : wide;
        for (int i = 0; i < rows; i++, to += wide) {
            const float *x = from + i * row + j * column;
            if (column == 1)
                memcpy(to, x, many * sizeof *x);
            else
                for (int q = 0; q < many; q++) to[q] = x[q * column];
            for (int q = many; q < wide; q++) to[q] = 0;
        }
    }
}

/* row <- e^(scale (row - its maximum)) of n entries, to whole vectors; returns the sum, to which the rest adds nothing. */
INLINE float exponentials(float *row, int n, float scale) {
    vf top = all(row[0]), total = {0};
    int i = 0;
    for (; i + VL <= n; i += VL) top = maximum(load(row + i), top);
    float most = top[0];
    for (int j = 1; j < VL; j++) most = top[j] > most ? top[j] : most;
    for (int j = i; j < n; j++) most = row[j] > most ? row[j] : most;
    for (int j = n; j < rounded_up(n); j++) row[j] = -__builtin_inff();
    for (i = 0; i < n; i += VL) {
        vf e = exponential(scale * (load(row + i) - most));
        store(row + i, e);
        total += e;
    }
    return sum(total);
}

/* y (n, queries, heads, e). q (n, heads, queries, d), k (n, heads, keys, d) and v (n, heads, keys, e), at the places of
 * `at`, in this order. scale is above 0. space: softmax_attention_space floats. */
void softmax_attention(const float *q, const float *k, const float *v, const long *at, float *y, int n, int heads,
                       int queries, int keys, int d, int e, float scale, int threads, float *space) {
    const struct places *of = (const struct places *)at;
    const int blocks = (queries + QUERIES - 1) / QUERIES, columns = rounded_up(keys), wide = rounded_up(e);
    const long all = (long)n * heads * blocks, held = softmax_attention_space(keys, d, e, 1);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int part = 0; part < threads; part++) {
        float *kt = space + part * held, *values = kt + (long)d * columns, *asked = values + (long)keys * wide,
              *scores = asked + QUERIES * d, *mixed = scores + (long)QUERIES * columns;
        long held_pair = -1;
        for (long task = all * part / threads; task < all * (part + 1) / threads; task++) {
            const long pair = task / blocks, b = pair / heads, h = pair % heads;
            const int first = (int)(task % blocks) * QUERIES,
                      many = queries - first < QUERIES ? queries - first : QUERIES;
            if (pair != held_pair) {
                pack(k + b * of[1].picture + h * of[1].head, d, keys, of[1].channel, of[1].position, kt);
                pack(v + b * of[2].picture + h * of[2].head, keys, e, of[2].position, of[2].channel, values);
                held_pair = pair;
            }
            const float *from = q + b * of[0].picture + h * of[0].head + first * of[0].position;
            for (int i = 0; i < many; i++)
                for (int j = 0; j < d; j++) asked[i * d + j] = from[i * of[0].position + j * of[0].channel];
            product_panels(many, columns, d, asked, d, kt, scores, columns);
            float sums[QUERIES];
            for (int i = 0; i < many; i++) sums[i] = exponentials(scores + (long)i * columns, keys, scale);
            product_panels(many, wide, keys, scores, columns, values, mixed, wide);
            for (int i = 0; i < many; i++) {
                float *to = y + (((long)b * queries + first + i) * heads + h) * e, share = 1.0f / sums[i];
                for (int j = 0; j < e; j += VL)
                    store_some(to + j, load(mixed + i * wide + j) * share, e - j < VL ? e - j : VL);
            }
        }
    }
}
