/* The residual linear-attention block, by the equations in kernels/attention_block.py, in two calls: the context, of
 * which the parts share the heads, and the output, of which they share the positions. Both read the picture through its
 * pre-norm's scale and shift. */
#include "exponentials.h"
#include "plan.h"
#include "product.h"

enum { POSITIONS = 2 * ROWS }; /* of queries at a time */

/* to (p, wide) <- x scale + shift over c channels, and zeros up to `wide`. */
INLINE void normalise(const float *x, int64_t ld, const float *scale, int p, int c, float *to, int wide) {
    for (int q = 0; q < p; q++)
        for (int i = 0; i < c; i += VL) {
            const int many = c - i < VL ? c - i : VL;
            const vf factor = load_some(scale + i, many), shift = load_some(scale + c + i, many);
            store(to + (int64_t)q * wide + i, fused(load_some(x + q * ld + i, many), factor, shift));
        }
}

int64_t attention_context_space(const union number *number) {
    const int64_t p = number[1].i, c = number[2].i, d = number[4].i, wide = rounded_up((int)c);
    return p * (wide + d) + d * (wide + d);
}

/* Each head's matrix from softmax(q) to the output: scale times the values' matrix of xh softmax(k)^T, transposed.
 *
 * Operands: x (n, p, c); its scale and shift (n, 2, c); each head's W_k^T (c, d); the values' matrices as product_panels
 * reads them, for each head: A^T (c, wide) and 0, or W_v^T (c, d) and W_out^T (d, wide), `wide` being c rounded up to VL;
 * the result (n, heads d, wide), likewise in panels. Numbers: n, p, c, heads, d (a multiple of VL); x's ld; scale. */
void attention_context(const struct call *call) {
    const union number *number = call->number;
    const int p = (int)number[1].i, c = (int)number[2].i, d = (int)number[4].i, wide = rounded_up(c);
    const int64_t n = number[0].i, heads = number[3].i, ld = number[5].i;
    const float scale = (float)number[6].r;
    float *xh = call->space, *k = xh + (int64_t)p * wide, *mixed = k + (int64_t)p * d, *small = mixed + d * wide;
    int64_t held = -1;
    for (int64_t task = share(call, n * heads, 0); task < share(call, n * heads, 1); task++) {
        const int64_t b = task / heads, h = task % heads;
        if (b != held) normalise(call->at[0] + b * p * ld, ld, call->at[1] + b * 2 * c, p, c, xh, wide);
        held = b;
        product(p, d, c, xh, wide, 1, call->at[2] + h * c * d, d, k, d);
        float sums[VL];
        const float *first = call->at[3] + h * c * (call->at[4] ? d : wide), *second = call->at[4];
        for (int j = 0; j < d; j += VL) {
            store(sums, scale / column_exponentials(k + j, d, k + j, d, p, VL));
            product(VL, wide, p, k + j, 1, d, xh, wide, mixed + j * wide, wide);
            for (int i = 0; i < VL; i++)
                for (int q = 0; q < wide; q += VL) {
                    float *at = mixed + (j + i) * wide + q;
                    store(at, load(at) * sums[i]);
                }
        }
        if (second) product_panels(d, d, c, mixed, wide, first, small, d);
        const float *a = second ? small : mixed, *matrix = second ? second + h * d * wide : first;
        const int depth = second ? d : c, apart = second ? d : wide;
        for (int j = 0; j < wide; j += 2 * VL) {
            const int columns = wide - j < 2 * VL ? VL : 2 * VL;
            float *to = call->at[5] + (b * wide + j) * heads * d + h * d * columns;
            product_panels(d, columns, depth, a, apart, matrix + (int64_t)j * depth, to, columns);
        }
    }
}

/* q <- softmax(q + bias) over each head's d entries. */
INLINE void head_softmax(float *q, const float *bias, int heads, int d) {
    for (int h = 0; h < heads; h++, q += d, bias += d) {
        for (int j = 0; j < d; j += VL) store(q + j, load(q + j) + load(bias + j));
        const float share = 1.0f / row_exponentials(q, q, d, 1);
        for (int j = 0; j < d; j += VL) store(q + j, load(q + j) * share);
    }
}

/* y = LayerNorm(v + constant) gain + x over c channels, and without a gain v + constant. v has entries up to a whole
 * vector and is overwritten. */
INLINE void channel_norm(float *v, const float *constant, const float *gain, const float *x, float *y, int c) {
    vf s = {0}, squares = {0};
    for (int i = 0; i < c; i += VL) {
        const int wide = c - i < VL ? c - i : VL;
        const vf a = only(load(v + i), wide, (vf){0}) + load_some(constant + i, wide);
        if (gain)
            store(v + i, a);
        else
            store_some(y + i, a, wide);
        s += a;
    }
    if (!gain) return;
    const float mean = sum(s) / c;
    for (int i = 0; i < c; i += VL) {
        const int wide = c - i < VL ? c - i : VL;
        const vf a = only(load(v + i) - mean, wide, (vf){0});
        squares = fused(a, a, squares);
    }
    const float scale = 1.0f / __builtin_sqrtf(sum(squares) / c + 1e-5f);
    for (int i = 0; i < c; i += VL) {
        const int wide = c - i < VL ? c - i : VL;
        store_some(y + i, fused((load(v + i) - mean) * scale, load_some(gain + i, wide), load_some(x + i, wide)), wide);
    }
}

int64_t attention_output_space(const union number *number) {
    const int64_t wide = rounded_up((int)number[2].i), width = number[3].i * number[4].i;
    return POSITIONS * (2 * wide + width);
}

/* y = LayerNorm(o) gain + x, o = softmax(q) times the context, plus a constant; y = o where there is no gain.
 *
 * Operands: x (n, p, c); its scale and shift (n, 2, c); W_q^T (c, heads d) as product_panels reads it; q's bias (heads
 * d); the context; the constant (c); gain (c), or 0; y. Numbers: n, p, c, heads, d; ld of x, of y. */
void attention_output(const struct call *call) {
    const union number *number = call->number;
    const int p = (int)number[1].i, c = (int)number[2].i, heads = (int)number[3].i, d = (int)number[4].i;
    const int width = heads * d, wide = rounded_up(c);
    const int64_t n = number[0].i, ld = number[5].i, to = number[6].i;
    float *xh = call->space, *q = xh + POSITIONS * wide, *v = q + POSITIONS * width;
    const int64_t blocks = (p + POSITIONS - 1) / POSITIONS;
    for (int64_t task = share(call, n * blocks, 0); task < share(call, n * blocks, 1); task++) {
        const int64_t b = task / blocks;
        const int first = (int)(task % blocks) * POSITIONS, many = p - first < POSITIONS ? p - first : POSITIONS;
        const float *x = call->at[0] + (b * p + first) * ld, *context = call->at[4] + b * width * wide;
        float *y = call->at[7] + (b * p + first) * to;
        normalise(x, ld, call->at[1] + b * 2 * c, many, c, xh, wide);
        product_panels(many, width, c, xh, wide, call->at[2], q, width);
        for (int i = 0; i < many; i++) head_softmax(q + i * width, call->at[3], heads, d);
        product_panels(many, wide, width, q, width, context, v, wide);
        for (int i = 0; i < many; i++)
            channel_norm(v + i * wide, call->at[5], call->at[6], x + i * ld, y + i * to, c);
    }
}
