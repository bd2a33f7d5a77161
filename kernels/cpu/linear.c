/* Linear layers and 1x1 convolutions: rows of channels times a matrix. */
#include "product.h"

enum { POSITIONS = 4 * ROWS, COLUMNS = 2 * VL }; /* rows at a time, and columns of a panel */

/* y = activation(products + bias) + residual, for `many` rows of `columns` columns. */
INLINE void finish(const float *products, int many, int columns, const float *bias, const float *residual, int o,
                   int activation, float *y) {
    for (int j = 0; j < columns; j += VL) {
        const int wide = columns - j < VL ? columns - j : VL;
        vf shift = bias ? load_some(bias + j, wide) : (vf){0};
        for (int i = 0; i < many; i++) {
            vf value = activate(load(products + i * COLUMNS + j) + shift, activation);
            if (residual) value += load_some(residual + (long)i * o + j, wide);
            store_some(y + (long)i * o + j, value, wide);
        }
    }
}

/* y (m, o) = activation(x w + bias) + residual. x (m, c); w (c, o rounded up to VL) in the panels of product_panels;
 * bias (o) or 0; residual: as y, or 0. A row's bits do not depend on the others. */
void linear(const float *x, const float *w, const float *bias, const float *residual, float *y, int m, int c, int o,
            int activation, int threads) {
    const long most = (m + POSITIONS - 1) / POSITIONS, blocks = most < threads ? (m < threads ? m : threads) : most;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long b = 0; b < blocks; b++) {
        float products[POSITIONS * COLUMNS];
        const long from = m * b / blocks;
        const int many = (int)(m * (b + 1) / blocks - from);
        for (int j = 0; j < o; j += COLUMNS) {
            const float *panel = w + (long)j * c;
            const int columns = o - j < COLUMNS ? o - j : COLUMNS;
            if (columns > VL)
                strip(2, many, c, x + from * c, c, 1, panel, 2 * VL, products, COLUMNS);
            else
                strip(1, many, c, x + from * c, c, 1, panel, VL, products, COLUMNS);
            const long at = from * o + j;
            finish(products, many, columns, bias ? bias + j : 0, residual ? residual + at : 0, o, activation, y + at);
        }
    }
}
