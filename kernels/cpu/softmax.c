/* Softmax over one dimension. */
#include "exponentials.h"
#include "places.h"

enum { OTHERS = 3, TOGETHER = 8 }; /* dimensions; rows */

int64_t softmax_space(const union number *number) { return number[9].i; }

/* Where a row, or a vector's worth of rows, lies. */
struct rows {
    const float *x;
    float *y;
};

static void softmax_rows(const struct rows *of, int rows, int n) {
    float tops[TOGETHER], shares[TOGETHER];
    for (int i = 0; i < rows; i++) tops[i] = row_maximum(of[i].x, n);
    for (int i = 0; i < rows; i++) shares[i] = 1.0f / row_exponentials(of[i].x, of[i].y, n, 1, tops[i]);
    for (int i = 0; i < rows; i++) row_scale(of[i].y, n, shares[i]);
}

/* A row whose elements do not lie side by side. */
static void softmax_apart(struct rows of, int64_t x_step, int64_t y_step, int n, float *space) {
    const struct rows inside = {.x = space, .y = space};
    for (int i = 0; i < n; i++) space[i] = of.x[i * x_step];
    softmax_rows(&inside, 1, n);
    for (int i = 0; i < n; i++) of.y[i * y_step] = space[i];
}

/* `wide` rows, whose elements of one index lie side by side. */
static void softmax_columns(struct rows of, int64_t x_step, int64_t y_step, int n, int wide) {
    const vf share = 1.0f / column_exponentials(of.x, x_step, of.y, y_step, n, wide);
    for (int q = 0; q < n; q++) store_some(of.y + q * y_step, load_some(of.y + q * y_step, wide) * share, wide);
}

/* y = softmax(x). Operands: x; y. Numbers: the sizes of the three other dimensions, their strides in x, in y; the size
 * of the dimension of the softmax, at least 1, its stride in x, in y. Where the last of the others has stride 1 in
 * both, a vector of it is computed at once. */
void softmax(const struct call *call) {
    const union number *size = call->number, *from = size + OTHERS, *to = from + OTHERS, *of = to + OTHERS;
    const int n = (int)of[0].i, side_by_side = of[1].i == 1 && of[2].i == 1;
    const int columns = !side_by_side && from[OTHERS - 1].i == 1 && to[OTHERS - 1].i == 1, across = columns ? VL : 1;
    const int64_t width = size[OTHERS - 1].i, steps = (width + across - 1) / across;
    const int64_t tasks = elements(size, OTHERS - 1) * steps, last = share(call, tasks, 1);
    struct rows held[TOGETHER];
    int many = 0;
    for (int64_t task = share(call, tasks, 0); task < last; task++) {
        const int64_t index = task / steps * width + task % steps * across;
        const struct rows at = {.x = call->at[0] + element_offset(index, size, from, OTHERS),
                                .y = call->at[1] + element_offset(index, size, to, OTHERS)};
        if (columns) {
            const int64_t left = width - index % width;
            softmax_columns(at, of[1].i, of[2].i, n, (int)(left < VL ? left : VL));
        } else if (!side_by_side) {
            softmax_apart(at, of[1].i, of[2].i, n, call->space);
        } else {
            held[many++] = at;
            if (many == TOGETHER || task + 1 == last) softmax_rows(held, many, n), many = 0;
        }
    }
}
