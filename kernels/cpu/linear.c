/* Linear layers and 1x1 convolutions: rows of channels times a matrix. */
#include "finish.h"
#include "plan.h"
#include "product.h"

int64_t linear_space(const union number *number) { return STACK * PANEL; }

/* y (m, o) = activation(x w + bias) + residual. A row's bits do not depend on the others.
 *
 * Operands: x (m, c); w (c, o rounded up to VL) in the panels of product_panels; bias (o), or 0; residual (m, o), or 0;
 * y. Numbers: m, c, o; ld of x, of the residual, of y; rows that share a bias; how far their bias lies after that of the
 * rows before, 0 for the same; the activation. */
void linear(const struct call *call) {
    const union number *number = call->number;
    const int64_t m = number[0].i, ld = number[3].i, other = number[4].i, to = number[5].i, sharing = number[6].i,
                  apart = number[7].i;
    const int c = (int)number[1].i, o = (int)number[2].i, activation = (int)number[8].i;
    const int64_t last = share(call, m, 1);
    float *products = call->space;
    for (int64_t from = share(call, m, 0); from < last; from += STACK) {
        const int many = (int)(last - from < STACK ? last - from : STACK);
        const float *x = call->at[0] + from * ld;
        for (int j = 0; j < o; j += PANEL) {
            const float *panel = call->at[1] + (int64_t)j * c;
            product_panels(many, o - j > VL ? PANEL : VL, c, x, ld, panel, products, PANEL);
            for (int k = 0; k < PANEL && j + k < o; k += VL) {
                const int at = j + k, wide = o - at < VL ? o - at : VL;
                for (int64_t i = 0; i < many; i++) {
                    const int64_t row = from + i;
                    finish(load(products + i * PANEL + k), call->at[2] ? call->at[2] + row / sharing * apart + at : 0,
                           call->at[3] ? call->at[3] + row * other + at : 0, call->at[4] + row * to + at, wide,
                           activation);
                }
            }
        }
    }
}
