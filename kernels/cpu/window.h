/* Which positions of an NHWC picture an output of a convolution or a pooling sees, and where that output lies. */
#pragma once
#include "plan.h"
#include "vectors.h"

/* Rows or columns: tap t of output i sees position i stride - before + t dilation of `size`; others are padding. */
struct axis {
    int64_t size, outputs, taps, stride, dilation, before;
};

/* How far apart pictures, rows and positions lie, in floats. */
struct steps {
    int64_t picture, row, position;
};

struct window {
    int64_t n, ld; /* pictures; from one position of x to the next */
    int c;
    struct axis down, across;
    struct steps y;
};

enum { WINDOW = 18 }; /* numbers that window_of reads */

INLINE struct axis axis_of(const union number *number) {
    return (struct axis){.size = number[0].i,
                         .outputs = number[1].i,
                         .taps = number[2].i,
                         .stride = number[3].i,
                         .dilation = number[4].i,
                         .before = number[5].i};
}

INLINE struct steps steps_of(const union number *number) {
    return (struct steps){.picture = number[0].i, .row = number[1].i, .position = number[2].i};
}

/* Numbers: n, c, ld of x; each of down and across as in struct axis; the result's steps. */
INLINE struct window window_of(const union number *number) {
    return (struct window){.n = number[0].i,
                           .c = (int)number[1].i,
                           .ld = number[2].i,
                           .down = axis_of(number + 3),
                           .across = axis_of(number + 9),
                           .y = steps_of(number + 15)};
}

/* Positions from the first that an output sees to the last of all outputs. */
INLINE int64_t extent(struct axis a, int64_t outputs) {
    return (outputs - 1) * a.stride + (a.taps > 0 ? (a.taps - 1) * a.dilation + 1 : 0);
}

/* Of an output whose tap 0 sees `start`: the first tap within the picture, and the first after it. */
INLINE int64_t first_tap(struct axis a, int64_t start) {
    if (start >= 0) return 0;
    const int64_t t = (a.dilation - 1 - start) / a.dilation;
    return t < a.taps ? t : a.taps;
}
INLINE int64_t last_tap(struct axis a, int64_t start) {
    if (start + (a.taps - 1) * a.dilation < a.size) return a.taps;
    return start >= a.size ? 0 : (a.size - start + a.dilation - 1) / a.dilation;
}

/* An output's place. */
struct place {
    int64_t picture, row, column;
};

INLINE struct place place_of(int64_t index, const struct window *window) {
    const int64_t across = window->across.outputs, row = index / across;
    return (struct place){row / window->down.outputs, row % window->down.outputs, index % across};
}

INLINE struct place after(struct place p, const struct window *window) {
    if (++p.column == window->across.outputs) p.column = 0, p.row++;
    if (p.row == window->down.outputs) p.row = 0, p.picture++;
    return p;
}

INLINE int64_t offset(struct steps steps, struct place p) {
    return p.picture * steps.picture + p.row * steps.row + p.column * steps.position;
}
