/* Softmax over one dimension. */
#include "exponentials.h"
#include "places.h"

enum { OTHERS = 3 }; /* dimensions */

int64_t softmax_space(const union number *number) { return number[9].i; }

/* Rows that lie side by side, in x, in y, or in neither: those are gathered first, or scattered last. */
static void softmax_row(const float *x, int64_t x_step, float *y, int64_t y_step, int n, float *space) {
    float *to = y_step == 1 ? y : space;
    if (x_step != 1) {
        for (int i = 0; i < n; i++) to[i] = x[i * x_step];
        x = to;
    }
    const float share = 1.0f / row_exponentials(x, to, n, 1);
    if (y_step == 1)
        for (int i = 0; i < n; i += VL) {
            const int wide = n - i < VL ? n - i : VL;
            store_some(to + i, load_some(to + i, wide) * share, wide);
        }
    else
        for (int i = 0; i < n; i++) y[i * y_step] = to[i] * share;
}

/* `wide` rows at once, whose elements of one index lie side by side. */
static void softmax_columns(const float *x, int64_t x_step, float *y, int64_t y_step, int n, int wide) {
    const vf share = 1.0f / column_exponentials(x, x_step, y, y_step, n, wide);
    for (int q = 0; q < n; q++) store_some(y + q * y_step, load_some(y + q * y_step, wide) * share, wide);
}

/* y = softmax(x). Operands: x; y. Numbers: the sizes of the three other dimensions, their strides in x, in y; the size of
 * the dimension of the softmax, at least 1, its stride in x, in y. Where the last of the others has stride 1 in both, a
 * vector of it is computed at once. */
void softmax(const struct call *call) {
    const union number *size = call->number, *from = size + OTHERS, *to = from + OTHERS, *of = to + OTHERS;
    const int n = (int)of[0].i;
    const int64_t x_step = of[1].i, y_step = of[2].i, last = size[OTHERS - 1].i;
    const int side_by_side = (x_step != 1 || y_step != 1) && from[OTHERS - 1].i == 1 && to[OTHERS - 1].i == 1;
    const int across = side_by_side ? VL : 1;
    const int64_t steps = (last + across - 1) / across, tasks = elements(size, OTHERS - 1) * steps;
    for (int64_t task = share(call, tasks, 0); task < share(call, tasks, 1); task++) {
        const int64_t first = task % steps * across, outer = task / steps;
        const float *x = call->at[0] + place(outer, size, from, OTHERS - 1) + first * from[OTHERS - 1].i;
        float *y = call->at[1] + place(outer, size, to, OTHERS - 1) + first * to[OTHERS - 1].i;
        if (side_by_side)
            softmax_columns(x, x_step, y, y_step, n, (int)(last - first < VL ? last - first : VL));
        else
            softmax_row(x, x_step, y, y_step, n, call->space);
    }
}
