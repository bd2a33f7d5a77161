/* Products of matrices in batches. */
#include "packing.h"
#include "places.h"
#include "product.h"

enum { BATCH = 3, BLOCK = 4 * ROWS, COLUMNS = 2 * VL }; /* dimensions; rows at a time, and columns */

int64_t matmul_space(const union number *number) { return (number[13].i + BLOCK) * COLUMNS; }

/* y (..., m, n) = alpha a (..., m, k) b (..., k, n), of any strides; 0 for what all of the batch share.
 *
 * Operands: a; b; y. Numbers: the sizes of the batch's three dimensions, their strides in a, in b, in y; m, k, n; the
 * two strides of a matrix of a, of b, of y; alpha. */
void matmul(const struct call *call) {
    const union number *size = call->number, *of_a = size + BATCH, *of_b = of_a + BATCH, *of_y = of_b + BATCH,
                       *matrix = of_y + BATCH, *a = matrix + 3, *b = a + 2, *y = b + 2;
    const int m = (int)matrix[0].i, k = (int)matrix[1].i, n = (int)matrix[2].i;
    const float alpha = (float)y[2].r;
    const int64_t blocks = (m + BLOCK - 1) / BLOCK, panels = (n + COLUMNS - 1) / COLUMNS,
                  tasks = elements(size, BATCH) * panels * blocks;
    float *packed = call->space, *products = packed + (int64_t)k * COLUMNS;
    int64_t held = -1;
    for (int64_t task = share(call, tasks, 0); task < share(call, tasks, 1); task++) {
        const int64_t panel = task / blocks, batch = panel / panels;
        const int row = (int)(task % blocks) * BLOCK, column = (int)(panel % panels) * COLUMNS;
        const int rows = m - row < BLOCK ? m - row : BLOCK, columns = n - column < COLUMNS ? n - column : COLUMNS;
        if (panel != held) {
            const float *from = call->at[1] + place(batch, size, of_b, BATCH) + column * b[1].i;
            pack(from, k, columns, b[0].i, b[1].i, packed);
            held = panel;
        }
        const float *from = call->at[0] + place(batch, size, of_a, BATCH) + row * a[0].i;
        product(rows, rounded_up(columns), k, from, a[0].i, a[1].i, packed, rounded_up(columns), products, COLUMNS);
        float *to = call->at[2] + place(batch, size, of_y, BATCH) + row * y[0].i + column * y[1].i;
        for (int i = 0; i < rows; i++, to += y[0].i)
            if (y[1].i == 1)
                for (int j = 0; j < columns; j += VL)
                    store_some(to + j, alpha * load(products + i * COLUMNS + j), columns - j < VL ? columns - j : VL);
            else
                for (int j = 0; j < columns; j++) to[j * y[1].i] = alpha * products[i * COLUMNS + j];
    }
}
