/* Convolution of any kernel, stride, padding and dilation, NHWC: what some outputs see is gathered into rows, which a
 * product with the weights follows. For what winograd.c and linear.c do not take. */
#include "finish.h"
#include "plan.h"
#include "product.h"
#include "window.h"

/* Where an output goes, and what is added to it. */
struct output {
    const float *bias, *residual; /* or 0 */
    float *y;
};

/* These write whole vectors, and so up to VL - 1 floats after the n; what is gathered next goes there. */
INLINE void clear(float *to, int64_t n) {
    for (int64_t i = 0; i < n; i += VL) store(to + i, (vf){0});
}

INLINE void copy_floats(const float *from, int64_t n, float *to) {
    const int64_t whole = n / VL * VL;
    for (int64_t i = 0; i < whole; i += VL) store(to + i, load(from + i));
    if (whole < n) store(to + whole, load_some(from + whole, (int)(n - whole)));
}

/* A function of its own, so that all its variables are in registers. */
SHARED void copy_taps(const float *from, int64_t apart, int64_t rows, int64_t n, float *to) {
    for (; rows > 0; rows--, from += apart, to += n) copy_floats(from, n, to);
}

INLINE void copy_normed(const float *from, int n, const float *scale, const float *shift, float *to) {
    for (int i = 0; i < n; i += VL) {
        const int wide = n - i < VL ? n - i : VL;
        store(to + i, fused(load_some(from + i, wide), load_some(scale + i, wide), load_some(shift + i, wide)));
    }
}

/* Taps `begin` to `end` of a row of taps, the first of which sees `from`; the others see padding. */
SHARED void gather_row(const struct window *s, const float *from, int64_t begin, int64_t end, const float *scale,
                       const float *shift, float *to) {
    const int c = s->c;
    clear(to, begin * c);
    const int64_t step = s->across.dilation * s->ld;
    if (step == c && !scale)
        copy_floats(from, (end - begin) * c, to + begin * c);
    else
        for (int64_t q = begin; q < end; q++, from += step)
            if (scale)
                copy_normed(from, c, scale, shift, to + q * c);
            else
                copy_floats(from, c, to + q * c);
    clear(to + end * c, (s->across.taps - end) * c);
}

/* What the output at a place sees of x, its picture: (taps down, taps across, c), of x scale + shift where scale is not
 * 0. The padding is 0, not shift. */
INLINE void gather(const struct window *s, const float *x, struct place p, const float *scale, const float *shift,
                   float *to) {
    const int c = s->c;
    const int64_t top = p.row * s->down.stride - s->down.before, left = p.column * s->across.stride - s->across.before;
    const int64_t begin = first_tap(s->across, left), end = last_tap(s->across, left), taps = s->across.taps;
    const int64_t highest = first_tap(s->down, top), lowest = last_tap(s->down, top);
    const int64_t row = taps * c, high = begin < end ? highest : s->down.taps, low = begin < end ? lowest : high;
    const int64_t apart = s->down.dilation * s->across.size * s->ld;
    const float *from = x + (top + high * s->down.dilation) * s->across.size * s->ld +
                        (left + begin * s->across.dilation) * s->ld;
    clear(to, high * row);
    if (end - begin == taps && s->across.dilation * s->ld == c && !scale)
        copy_taps(from, apart, low - high, row, to + high * row);
    else
        for (int64_t r = high; r < low; r++, from += apart)
            gather_row(s, from, begin, end, scale, shift, to + r * row);
    clear(to + low * row, (s->down.taps - low) * row);
}

INLINE int64_t depth(const struct window *s) { return s->down.taps * s->across.taps * s->c; }

enum { ABREAST = 8 }; /* rows whose sums are independent of each other */

/* sums += seen (rows, k) times k weights, at q: `wide` entries. */
INLINE void add_products(const int rows, int64_t k, const float *seen, const float *weights, int64_t q, const int wide,
                         vf *sums) {
    const vf weight = load_some(weights + q, wide);
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) sums[i] = fused(load_some(seen + i * k + q, wide), weight, sums[i]);
}

/* products (rows, o) = seen (rows, k) weights (o, k)^T, vectors along k: for few outputs, which a panel's vectors would
 * not fill. */
INLINE void some_dots(const int rows, int k, int o, const float *seen, const float *weights, float *products) {
    for (int j = 0; j < o; j++, weights += k) {
        vf sums[ABREAST] = {{0}};
        int q = 0;
        for (; q + VL <= k; q += VL) add_products(rows, k, seen, weights, q, VL, sums);
        if (q < k) add_products(rows, k, seen, weights, q, k - q, sums);
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) products[i * PANEL + j] = sum(sums[i]);
    }
}

INLINE void dots(int rows, int k, int o, const float *seen, const float *weights, float *products) {
    int i = 0;
    for (; i + ABREAST <= rows; i += ABREAST)
        some_dots(ABREAST, k, o, seen + (int64_t)i * k, weights, products + i * PANEL);
    for (; i < rows; i++) some_dots(1, k, o, seen + (int64_t)i * k, weights, products + i * PANEL);
}

int64_t convolution_space(const union number *number) {
    const struct window s = window_of(number);
    return STACK * depth(&s) + VL + STACK * PANEL;
}

/* y (n, down, across, o) = activation(conv(x scale + shift) + bias) + residual, x (n, h, w, c).
 *
 * Operands: x; scale and shift of a norm (n, 2, c), or 0; weights (taps down, taps across, c; o rounded up to VL) in
 * the panels of product_panels, or for dots (o; taps down, taps across, c); bias (o) or 0; residual (n, down, across,
 * o) or 0; y. Numbers: those of window_of; o; how far a picture's scales lie after those of the one before, and its
 * shifts after its scales; the residual's steps; how far the bias of a picture lies after that of the one before, 0 for
 * the same; the activation; whether the weights are for dots, o less than VL. */
void convolution(const struct call *call) {
    const struct window s = window_of(call->number);
    const union number *number = call->number + WINDOW;
    const int o = (int)number[0].i, k = (int)depth(&s), activation = (int)number[7].i, few = (int)number[8].i;
    const struct steps other = steps_of(number + 3);
    const int64_t outputs = s.n * s.down.outputs * s.across.outputs, last = share(call, outputs, 1);
    const float *x = call->at[0], *scales = call->at[1], *bias = call->at[3], *residual = call->at[4];
    float *products = call->space, *seen = products + STACK * PANEL;
    struct output targets[STACK];
    struct place p = place_of(share(call, outputs, 0), &s);
    for (int64_t at = share(call, outputs, 0); at < last; at += STACK) {
        const int many = (int)(last - at < STACK ? last - at : STACK);
        for (int i = 0; i < many; i++, p = after(p, &s)) {
            const float *scale = scales ? scales + p.picture * number[1].i : 0;
            const float *picture = x + p.picture * s.down.size * s.across.size * s.ld;
            gather(&s, picture, p, scale, scale ? scale + number[2].i : 0, seen + (int64_t)i * k);
            targets[i] = (struct output){.bias = bias ? bias + p.picture * number[6].i : 0,
                                         .residual = residual ? residual + offset(other, p) : 0,
                                         .y = call->at[5] + offset(s.y, p)};
        }
        for (int j = 0; j < o; j += PANEL) {
            const float *panel = call->at[2] + (int64_t)j * k;
            if (few)
                dots(many, k, o, seen, panel, products);
            else
                product_panels(many, o - j > VL ? PANEL : VL, k, seen, k, panel, products, PANEL);
            for (int v = j; v < j + PANEL && v < o; v += VL) {
                const int wide = o - v < VL ? o - v : VL;
                for (int i = 0; i < many; i++) {
                    const struct output to = targets[i];
                    finish(load_some(products + i * PANEL + v - j, wide), to.bias ? to.bias + v : 0,
                           to.residual ? to.residual + v : 0, to.y + v, wide, activation);
                }
            }
        }
    }
}
