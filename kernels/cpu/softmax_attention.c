/* softmax(scale q k^T) v, head by head: Vaswani et al., "Attention is all you need" (2017), eq. 1. */
#include "exponentials.h"
#include "packing.h"
#include "plan.h"
#include "product.h"

/* Where a position's first channel lies. */
INLINE float *position_at(float *base, const union number *stride, int64_t picture, int64_t head, int64_t position) {
    return base + picture * stride[0].i + head * stride[1].i + position * stride[2].i;
}

int64_t softmax_attention_space(const union number *number) {
    const int64_t keys = number[3].i, d = number[4].i, e = number[5].i;
    const int64_t columns = rounded_up((int)keys), wide = rounded_up((int)e);
    return d * columns + keys * wide + QUERIES * (d + columns + wide);
}

/* y (n, heads, queries, e), of q (n, heads, queries, d), k (n, heads, keys, d) and v (n, heads, keys, e).
 *
 * Operands: q; k; v; y. Numbers: n, heads, queries, keys, d, e; the four strides of q, of k, of v, of y, y's last being
 * 1; scale, above 0. */
void softmax_attention(const struct call *call) {
    const union number *number = call->number, *of_q = number + 6, *of_k = of_q + 4, *of_v = of_k + 4,
                       *of_y = of_v + 4;
    const int64_t n = number[0].i, heads = number[1].i;
    const int queries = (int)number[2].i, keys = (int)number[3].i, d = (int)number[4].i, e = (int)number[5].i;
    const int columns = rounded_up(keys), wide = rounded_up(e);
    const float scale = (float)number[22].r;
    float *kt = call->space, *values = kt + (int64_t)d * columns, *asked = values + (int64_t)keys * wide,
          *scores = asked + QUERIES * d, *mixed = scores + (int64_t)QUERIES * columns, tops[QUERIES], sums[QUERIES];
    const int64_t blocks = (queries + QUERIES - 1) / QUERIES, tasks = n * heads * blocks;
    int64_t held = -1;
    for (int64_t task = share(call, tasks, 0); task < share(call, tasks, 1); task++) {
        const int64_t pair = task / blocks, b = pair / heads, h = pair % heads;
        const int first = (int)(task % blocks) * QUERIES,
                  many = queries - first < QUERIES ? queries - first : QUERIES;
        if (pair != held) {
            pack(position_at(call->at[1], of_k, b, h, 0), d, keys, of_k[3].i, of_k[2].i, kt);
            pack(position_at(call->at[2], of_v, b, h, 0), keys, e, of_v[2].i, of_v[3].i, values);
            held = pair;
        }
        for (int i = 0; i < many; i++) {
            const float *from = position_at(call->at[0], of_q, b, h, first + i);
            for (int j = 0; j < d; j++) asked[i * d + j] = from[j * of_q[3].i];
        }
        product_panels(many, columns, d, asked, d, kt, scores, columns);
        for (int i = 0; i < many; i++) tops[i] = row_maximum(scores + (int64_t)i * columns, keys);
        for (int i = 0; i < many; i++) {
            float *row = scores + (int64_t)i * columns;
            sums[i] = row_exponentials(row, row, keys, scale, tops[i]);
        }
        product_panels(many, wide, keys, scores, columns, values, mixed, wide);
        for (int i = 0; i < many; i++) {
            float *to = position_at(call->at[3], of_y, b, h, first + i);
            const float share = 1.0f / sums[i];
            for (int j = 0; j < e; j += VL)
                store_some(to + j, load(mixed + i * wide + j) * share, e - j < VL ? e - j : VL);
        }
    }
}
