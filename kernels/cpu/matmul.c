/* Products of matrices in batches. */
#include "packing.h"
#include "places.h"
#include "product.h"

enum { BATCH = 3 }; /* dimensions */

int64_t matmul_space(const union number *number) { return (number[13].i + STACK) * PANEL; }

/* y (..., m, n) = alpha a (..., m, k) b (..., k, n), of any strides; 0 for what all of the batch share.
 *
 * Operands: a; b; y. Numbers: the sizes of the batch's three dimensions, their strides in a, in b, in y; m, k, n; the
 * two strides of a matrix of a, of b, of y; alpha. */
void matmul(const struct call *call) {
    const union number *size = call->number, *of_a = size + BATCH, *of_b = of_a + BATCH, *of_y = of_b + BATCH,
                       *matrix = of_y + BATCH, *a = matrix + 3, *b = a + 2, *y = b + 2;
    const int m = (int)matrix[0].i, k = (int)matrix[1].i, n = (int)matrix[2].i;
    const float alpha = (float)y[2].r;
    const int64_t blocks = (m + STACK - 1) / STACK, panels = (n + PANEL - 1) / PANEL,
                  tasks = elements(size, BATCH) * panels * blocks;
    float *packed = call->space, *products = packed + (int64_t)k * PANEL;
    int64_t held = -1;
    for (int64_t task = share(call, tasks, 0); task < share(call, tasks, 1); task++) {
        const int64_t panel = task / blocks, batch = panel / panels;
        const int row = (int)(task % blocks) * STACK, column = (int)(panel % panels) * PANEL;
        const int rows = m - row < STACK ? m - row : STACK, columns = n - column < PANEL ? n - column : PANEL;
        if (panel != held) {
            const float *from = call->at[1] + element_offset(batch, size, of_b, BATCH) + column * b[1].i;
            pack(from, k, columns, b[0].i, b[1].i, packed);
            held = panel;
        }
        const float *from = call->at[0] + element_offset(batch, size, of_a, BATCH) + row * a[0].i;
        product(rows, rounded_up(columns), k, from, a[0].i, a[1].i, packed, rounded_up(columns), products, PANEL);
        float *to = call->at[2] + element_offset(batch, size, of_y, BATCH) + row * y[0].i + column * y[1].i;
        for (int i = 0; i < rows; i++, to += y[0].i)
            if (y[1].i == 1)
                for (int j = 0; j < columns; j += VL)
                    store_some(to + j, alpha * load(products + i * PANEL + j), columns - j < VL ? columns - j : VL);
            else
                for (int j = 0; j < columns; j++) to[j * y[1].i] = alpha * products[i * PANEL + j];
    }
}
