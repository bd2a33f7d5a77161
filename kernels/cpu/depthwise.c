/* Depthwise convolution, NHWC, of any kernel, stride, padding and dilation. */
#include "finish.h"
#include "plan.h"
#include "window.h"

enum { ACROSS = 8 };   /* outputs of a row at a time, which share each loaded weight */
enum { MOST = 1 << 16 }; /* floats of a padded copy: it stays in the second-level cache */

/* Rows of outputs that share a padded copy of one vector of channels. */
INLINE int64_t band(const struct window *s) {
    const int64_t row = extent(s->across, s->across.outputs) * VL, fit = row ? MOST / row : 0;
    const int64_t rows = (fit - extent(s->down, 1)) / s->down.stride + 1;
    return rows < 1 ? 1 : rows < s->down.outputs ? rows : s->down.outputs;
}

int64_t depthwise_space(const union number *number) {
    const struct window s = window_of(number);
    return extent(s.down, band(&s)) * extent(s.across, s.across.outputs) * VL;
}

/* The rows of x from `top`, its columns from those that the first output sees, 0 outside of the picture; one vector of
 * channels, of which there are `wide`. */
INLINE void pad(const struct window *s, const float *x, int wide, int64_t top, int64_t rows, int64_t columns,
                float *to) {
    const int64_t left = -s->across.before;
    for (int64_t r = top; r < top + rows; r++)
        for (int64_t q = left; q < left + columns; q++, to += VL) {
            const int inside = r >= 0 && r < s->down.size && q >= 0 && q < s->across.size;
            store(to, inside ? load_some(x + (r * s->across.size + q) * s->ld, wide) : (vf){0});
        }
}

/* Where results go, and what is added to them before and after the activation. */
struct target {
    vf bias;
    const float *residual; /* or 0 */
    float *y;
    int64_t residual_step, step;
    int wide, activation;
};

INLINE void outputs(const int many, const int64_t stride, const struct window *s, const float *x, int64_t row,
                    const float *weight, struct target to, int64_t at) {
    vf sums[ACROSS];
    for (int i = 0; i < many; i++) sums[i] = to.bias;
    x += at * stride * VL;
    for (int64_t r = 0; r < s->down.taps; r++)
        for (int64_t q = 0; q < s->across.taps; q++, weight += VL) {
            const vf k = load(weight);
            const float *from = x + r * s->down.dilation * row + q * s->across.dilation * VL;
#pragma GCC unroll 8
            for (int i = 0; i < many; i++) sums[i] = fused(load(from + i * stride * VL), k, sums[i]);
        }
    for (int i = 0; i < many; i++)
        finish(sums[i], 0, to.residual ? to.residual + (at + i) * to.residual_step : 0, to.y + (at + i) * to.step,
               to.wide, to.activation);
}

/* A row of outputs. Callers pass a stride of 1 as a constant, so that the addresses of neighbours are constants too. */
INLINE void line(const int64_t stride, const struct window *s, const float *x, int64_t row, const float *weight,
                 struct target to) {
    const int64_t w = s->across.outputs;
    int64_t q = 0;
    for (; q + ACROSS <= w; q += ACROSS) outputs(ACROSS, stride, s, x, row, weight, to, q);
    if (q + 4 <= w) outputs(4, stride, s, x, row, weight, to, q), q += 4;
    for (; q < w; q++) outputs(1, stride, s, x, row, weight, to, q);
}

/* y (n, down, across, c) = activation(conv(x) + bias) + residual, each channel by itself.
 *
 * Operands: x (n, h, w, c); weights (vectors of channels, taps down, taps across, VL), a vector's channels those of
 * vector_at; bias (c) or 0; residual (n, down, across, c) or 0; y. Numbers: those of window_of; the residual's steps; how
 * far the bias of a picture lies after that of the one before, 0 for the same; the activation. */
void depthwise(const struct call *call) {
    const struct window s = window_of(call->number);
    const union number *number = call->number + WINDOW;
    const struct steps other = steps_of(number);
    const int c = s.c, wide = vector_of(c), activation = (int)number[4].i;
    const int64_t vectors = (c + VL - 1) / VL, columns = extent(s.across, s.across.outputs), most = band(&s);
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
            extent(s.down, many), columns, padded);
        for (; p.row < row + many; p.row++) {
            const float *from = padded + (p.row - row) * s.down.stride * columns * VL;
            const struct target to = {.bias = bias ? load_some(bias + p.picture * number[3].i + at, wide) : (vf){0},
                                      .residual = residual ? residual + offset(other, p) + at : 0,
                                      .y = call->at[4] + offset(s.y, p) + at,
                                      .residual_step = other.position,
                                      .step = s.y.position,
                                      .wide = wide,
                                      .activation = activation};
            if (s.across.stride == 1)
                line(1, &s, from, columns * VL, weight, to);
            else
                line(s.across.stride, &s, from, columns * VL, weight, to);
        }
    }
}
