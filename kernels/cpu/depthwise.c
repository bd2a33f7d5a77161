/* Depthwise convolution, NHWC, of any kernel, stride, padding and dilation. */
#include "finish.h"
#include "plan.h"
#include "window.h"

enum { ACROSS = 8, FEWER = 4 }; /* outputs of a row at a time, which share each loaded weight */
enum { CACHED = 1 << 16 };        /* floats of a padded copy: it stays in the second-level cache */

/* Columns of a padded copy: those that the last of a row's outputs see, in whole groups of FEWER. */
INLINE int64_t columns(const struct window *s) {
    return extent(s->across, (s->across.outputs + FEWER - 1) / FEWER * FEWER);
}

/* Rows of outputs that share a padded copy of one vector of channels. */
INLINE int64_t band(const struct window *s) {
    const int64_t fit = CACHED / (columns(s) * VL), rows = (fit - extent(s->down, 1)) / s->down.stride + 1;
    return rows < 1 ? 1 : rows < s->down.outputs ? rows : s->down.outputs;
}

int64_t depthwise_space(const union number *number) {
    const struct window s = window_of(number);
    return extent(s.down, band(&s)) * columns(&s) * VL;
}

/* Rows of x from `top`, columns from the first that an output sees, 0 outside of the picture; one vector of channels,
 * `wide` of them. */
INLINE void pad(const struct window *s, const float *x, int wide, int64_t top, int64_t rows, float *to) {
    const int64_t left = -s->across.before, end = left + columns(s);
    const int64_t stop = end < s->across.size ? end : s->across.size;
    for (int64_t r = top; r < top + rows; r++) {
        int64_t q = left;
        if (r >= 0 && r < s->down.size) {
            for (; q < 0 && q < end; q++, to += VL) store(to, (vf){0});
            for (const float *from = x + (r * s->across.size + q) * s->ld; q < stop; q++, from += s->ld, to += VL)
                store(to, load_some(from, wide));
        }
        for (; q < end; q++, to += VL) store(to, (vf){0});
    }
}

/* Sums over the taps for `many` outputs side by side. Callers pass the taps of a row as a constant where stride and
 * dilation are 1, so that a number is loaded once for all the outputs that see it; else 0. */
INLINE void add_taps(const int many, const int taps, const struct window *s, const float *x, int64_t row,
                     const float *weight, vf *sums) {
    for (int64_t r = 0; r < s->down.taps; r++, x += s->down.dilation * row, weight += s->across.taps * VL) {
        if (taps) {
#pragma GCC unroll 16
            for (int j = 0; j < many + taps - 1; j++) {
                const vf v = load(x + j * VL);
#pragma GCC unroll 8
                for (int i = 0; i < many; i++)
                    if (i <= j && j < i + taps) sums[i] = fused(v, load(weight + (j - i) * VL), sums[i]);
            }
        } else
            for (int64_t q = 0; q < s->across.taps; q++) {
                const vf k = load(weight + q * VL);
                const float *from = x + q * s->across.dilation * VL;
#pragma GCC unroll 8
                for (int i = 0; i < many; i++) sums[i] = fused(load(from + i * s->across.stride * VL), k, sums[i]);
            }
    }
}

/* Where a row of results goes, and what is added before the activation and after it. */
struct line_output {
    vf bias;
    const float *residual; /* or 0 */
    float *y;
    int64_t residual_step, step;
    int wide, activation;
};

/* A function of its own, because activations unrolled for every output would take longer to compile than all else. */
SHARED void finish_outputs(const float *sums, int many, const struct line_output *to, int64_t at) {
    const float *residual = to->residual ? to->residual + at * to->residual_step : 0;
    float *y = to->y + at * to->step;
    for (int i = 0; i < many; i++, sums += VL, y += to->step) {
        finish(load(sums), 0, residual, y, to->wide, to->activation);
        if (residual) residual += to->residual_step;
    }
}

INLINE void outputs(const int many, const int taps, const struct window *s, const float *x, int64_t row,
                    const float *weight, const struct line_output *to, int64_t at) {
    vf sums[ACROSS];
    float held[ACROSS * VL];
#pragma GCC unroll 8
    for (int i = 0; i < many; i++) sums[i] = to->bias;
    add_taps(many, taps, s, x + at * s->across.stride * VL, row, weight, sums);
#pragma GCC unroll 8
    for (int i = 0; i < many; i++) store(held + i * VL, sums[i]);
    finish_outputs(held, at + many <= s->across.outputs ? many : (int)(s->across.outputs - at), to, at);
}

INLINE void line(const int taps, const struct window *s, const float *x, int64_t row, const float *weight,
                 const struct line_output *to) {
    const int64_t w = s->across.outputs;
    int64_t q = 0;
    for (; q + FEWER < w; q += ACROSS) outputs(ACROSS, taps, s, x, row, weight, to, q);
    if (q < w) outputs(FEWER, taps, s, x, row, weight, to, q);
}

/* y (n, down, across, c) = activation(conv(x) + bias) + residual, each channel by itself.
 *
 * Operands: x (n, h, w, c); weights (vectors of channels, taps down, taps across, VL), a vector's channels those of
 * vector_at; bias (c) or 0; residual (n, down, across, c) or 0; y. Numbers: those of window_of; the residual's steps;
 * how far the bias of a picture lies after that of the one before, 0 for the same; the activation. */
void depthwise(const struct call *call) {
    const struct window s = window_of(call->number);
    const union number *number = call->number + WINDOW;
    const struct steps other = steps_of(number);
    const int c = s.c, wide = vector_of(c), activation = (int)number[4].i;
    const int64_t vectors = (c + VL - 1) / VL, most = band(&s), width = columns(&s) * VL;
    const int dense = s.across.stride == 1 && s.across.dilation == 1;
    const int64_t rows = s.n * vectors * s.down.outputs, last = share(call, rows, 1);
    const float *x = call->at[0], *bias = call->at[2], *residual = call->at[3];
    float *padded = call->space;
    for (int64_t i = share(call, rows, 0), many; i < last; i += many) {
        const int64_t row = i % s.down.outputs, vector = i / s.down.outputs % vectors;
        struct place p = {i / s.down.outputs / vectors, row, 0};
        const int at = vector_at((int)vector * VL, c);
        const float *weight = call->at[1] + vector * s.down.taps * s.across.taps * VL;
        many = s.down.outputs - row < most ? s.down.outputs - row : most;
        many = last - i < many ? last - i : many;
        pad(&s, x + p.picture * s.down.size * s.across.size * s.ld + at, wide, row * s.down.stride - s.down.before,
            extent(s.down, many), padded);
        for (; p.row < row + many; p.row++) {
            const float *from = padded + (p.row - row) * s.down.stride * width;
            const struct line_output to = {.bias = bias ? load_some(bias + p.picture * number[3].i + at, wide) : (vf){0},
                                      .residual = residual ? residual + offset(other, p) + at : 0,
                                      .y = call->at[4] + offset(s.y, p) + at,
                                      .residual_step = other.position,
                                      .step = s.y.position,
                                      .wide = wide,
                                      .activation = activation};
            switch (dense ? s.across.taps : 0) {
            case 3:
                line(3, &s, from, width, weight, &to);
                break;
            case 5:
                line(5, &s, from, width, weight, &to);
                break;
            case 7:
                line(7, &s, from, width, weight, &to);
                break;
            default:
                line(0, &s, from, width, weight, &to);
            }
        }
    }
}

/* Adds the products of a band's outputs with what `taps` neighbouring taps of a row of the kernel see. */
INLINE void add_seen(const int taps, const struct window *s, const float *x, int64_t row, const float *dy, int wide,
                     int64_t rows, float *sums) {
    vf held[ACROSS];
#pragma GCC unroll 8
    for (int j = 0; j < taps; j++) held[j] = load(sums + j * VL);
    for (int64_t r = 0; r < rows; r++, x += s->down.stride * row, dy += s->y.row) {
        const float *from = x, *to = dy;
        for (int64_t q = 0; q < s->across.outputs; q++, from += s->across.stride * VL, to += s->y.position) {
            const vf d = load_some(to, wide);
#pragma GCC unroll 8
            for (int j = 0; j < taps; j++) held[j] = fused(load(from + j * s->across.dilation * VL), d, held[j]);
        }
    }
#pragma GCC unroll 8
    for (int j = 0; j < taps; j++) store(sums + j * VL, held[j]);
}

/* The gradient of `depthwise` with respect to its weight, each picture's by itself: dw (n, taps down, taps across, c).
 *
 * Operands: x (n, h, w, c); dy (n, down, across, c); dw. Numbers: those of window_of, y being dy. */
void depthwise_gradient(const struct call *call) {
    const struct window s = window_of(call->number);
    const int c = s.c, wide = vector_of(c);
    const int64_t vectors = (c + VL - 1) / VL, most = band(&s), width = columns(&s) * VL;
    const int64_t taps = s.down.taps * s.across.taps, last = share(call, s.n * vectors, 1);
    float *padded = call->space, *sums = padded + extent(s.down, most) * width;
    for (int64_t i = share(call, s.n * vectors, 0); i < last; i++) {
        struct place p = {i / vectors, 0, 0};
        const int at = vector_at((int)(i % vectors) * VL, c);
        const float *x = call->at[0] + p.picture * s.down.size * s.across.size * s.ld + at;
        for (int64_t t = 0; t < taps; t++) store(sums + t * VL, (vf){0});
        for (int64_t rows; p.row < s.down.outputs; p.row += rows) {
            rows = s.down.outputs - p.row < most ? s.down.outputs - p.row : most;
            pad(&s, x, wide, p.row * s.down.stride - s.down.before, extent(s.down, rows), padded);
            const float *dy = call->at[1] + offset(s.y, p) + at;
            for (int64_t r = 0; r < s.down.taps; r++)
                for (int64_t q = 0, many; q < s.across.taps; q += many) {
                    const float *from = padded + r * s.down.dilation * width + q * s.across.dilation * VL;
                    float *to = sums + (r * s.across.taps + q) * VL;
                    many = s.across.taps - q;
                    if (many >= 7)
                        many = 7, add_seen(7, &s, from, width, dy, wide, rows, to);
                    else if (many >= 3)
                        many = 3, add_seen(3, &s, from, width, dy, wide, rows, to);
                    else
                        many = 1, add_seen(1, &s, from, width, dy, wide, rows, to);
                }
        }
        float *dw = call->at[2] + p.picture * taps * c + at;
        for (int64_t t = 0; t < taps; t++) store_some(dw + t * c, load(sums + t * VL), wide);
    }
}

int64_t depthwise_gradient_space(const union number *number) {
    const struct window s = window_of(number);
    return depthwise_space(number) + s.down.taps * s.across.taps * VL;
}
