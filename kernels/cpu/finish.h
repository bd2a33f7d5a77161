/* How a product or a convolution ends. */
#pragma once
#include "vectors.h"

/* y = activation(sum + bias) + residual, the first n entries; bias or residual may be 0. */
INLINE void finish(vf sum, const float *bias, const float *residual, float *y, int n, int activation) {
    if (bias) sum += load_some(bias, n);
    sum = activate(sum, activation);
    if (residual) sum += load_some(residual, n);
    store_some(y, sum, n);
}
