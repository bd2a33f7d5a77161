/* The residual linear-attention block, by the equations in kernels/attention_block.py, in two calls: the context, of
 * which the parts share the heads, and the output, of which they share the positions. Both read the picture through its
 * pre-norm's scale and shift. */
#include "exponentials.h"
#include "plan.h"
#include "product.h"

/* to (p, c) <- x scale + shift. */
INLINE void normalise(const float *x, int64_t ld, const float *scale, int p, int c, float *to) {
    const int wide = vector_of(c);
    for (int64_t q = 0; q < p; q++)
        for (int i = 0; i < c; i += VL) {
            const int at = vector_at(i, c);
            const vf factor = load_some(scale + at, wide), shift = load_some(scale + c + at, wide);
            store_some(to + q * c + at, fused(load_some(x + q * ld + at, wide), factor, shift), wide);
        }
}

int64_t attention_context_space(const union number *number) {
    const int64_t p = number[1].i, c = number[2].i, d = number[4].i;
    return p * (c + d) + (c + d + 1) * d;
}

/* Each head's matrix from softmax(q) to the output: scale times the values' matrix of xh softmax(k)^T, transposed.
 *
 * Operands: x (n, p, c); its scale and shift (n, 2, c); each head's W_k^T (c, d); the values' matrices of each head:
 * A^T (c, wide) and 0, or W_v^T (c, d) and W_out^T (d, wide), `wide` being c rounded up to VL, with zeros; the result
 * (n, heads d, wide), as product_panels reads it. Numbers: n, p, c, heads, d (a multiple of VL); x's ld; scale. */
void attention_context(const struct call *call) {
    const union number *number = call->number;
    const int p = (int)number[1].i, c = (int)number[2].i, d = (int)number[4].i, wide = rounded_up(c);
    const int64_t n = number[0].i, heads = number[3].i, ld = number[5].i;
    const float scale = (float)number[6].r, *second = call->at[4];
    float *k = call->space, *mixed = k + (int64_t)p * d, *small = mixed + c * d, *sums = small + d * d, *xh = sums + d;
    int64_t held = -1;
    for (int64_t task = share(call, n * heads, 0); task < share(call, n * heads, 1); task++) {
        const int64_t b = task / heads, h = task % heads;
        const float *first = call->at[3] + h * c * (second ? d : wide);
        if (b != held) normalise(call->at[0] + b * p * ld, ld, call->at[1] + b * 2 * c, p, c, xh);
        held = b;
        product(p, d, c, xh, c, 1, call->at[2] + h * c * d, d, k, d);
        for (int j = 0; j < d; j += VL) store(sums + j, scale / column_exponentials(k + j, d, k + j, d, p, VL));
        product(c, d, p, xh, 1, c, k, d, mixed, d);
        for (int i = 0; i < c; i++)
            for (int j = 0; j < d; j += VL) store(mixed + i * d + j, load(mixed + i * d + j) * load(sums + j));
        if (second) product(d, d, c, mixed, 1, d, first, d, small, d);
        for (int j = 0; j < wide; j += 2 * VL) {
            const int columns = wide - j < 2 * VL ? VL : 2 * VL;
            float *to = call->at[5] + (b * wide + j) * heads * d + h * d * columns;
            if (second)
                product(d, columns, d, small, d, 1, second + h * d * wide + j, wide, to, columns);
            else
                product(d, columns, c, mixed, 1, d, first + j, wide, to, columns);
        }
    }
}

/* q <- softmax(q + bias) of `many` positions over each head's d entries. tops, shares: (many heads). */
INLINE void head_softmax(float *q, const float *bias, int many, int heads, int d, float *tops, float *shares) {
    for (int i = 0; i < many * heads; i++) {
        float *of = q + i * d;
        for (int j = 0; j < d; j += VL) store(of + j, load(of + j) + load(bias + i % heads * d + j));
        tops[i] = row_maximum(of, d);
    }
    for (int i = 0; i < many * heads; i++) shares[i] = 1.0f / row_exponentials(q + i * d, q + i * d, d, 1, tops[i]);
    for (int i = 0; i < many * heads; i++) row_scale(q + i * d, d, shares[i]);
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
    const int64_t c = number[2].i, heads = number[3].i, d = number[4].i;
    return QUERIES * (c + heads * (d + 2) + rounded_up((int)c));
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
    float *q = call->space, *v = q + QUERIES * width, *xh = v + QUERIES * wide, *tops = xh + QUERIES * c,
          *shares = tops + QUERIES * heads;
    const int64_t blocks = (p + QUERIES - 1) / QUERIES;
    for (int64_t task = share(call, n * blocks, 0); task < share(call, n * blocks, 1); task++) {
        const int64_t b = task / blocks;
        const int first = (int)(task % blocks) * QUERIES, many = p - first < QUERIES ? p - first : QUERIES;
        const float *x = call->at[0] + (b * p + first) * ld, *context = call->at[4] + b * width * wide;
        float *y = call->at[7] + (b * p + first) * to;
        normalise(x, ld, call->at[1] + b * 2 * c, many, c, xh);
        product_panels(many, width, c, xh, c, call->at[2], q, width);
        head_softmax(q, call->at[3], many, heads, d, tops, shares);
        product_panels(many, wide, width, q, width, context, v, wide);
        for (int64_t i = 0; i < many; i++)
            channel_norm(v + i * wide, call->at[5], call->at[6], x + i * ld, y + i * to, c);
    }
}
