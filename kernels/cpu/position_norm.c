/* Norms over the channels of each position. */
#include "plan.h"
#include "vectors.h"

/* The sum of v less m over c channels, or of its square. */
INLINE float channel_sum(const float *v, int c, float m, int squares) {
    vf s = {0};
    for (int i = 0; i < c; i += VL) {
        const int wide = c - i < VL ? c - i : VL;
        const vf a = only(load_some(v + i, wide) - m, wide, (vf){0});
        s = squares ? fused(a, a, s) : s + a;
    }
    return sum(s);
}

int64_t position_norm_space(const union number *number) { return 0; }

/* y = activation(n(x) weight + bias) + residual, rows of c channels. n(x) is x over its length or eps, whichever is
 * larger; where centred, (x - mean) / sqrt(var + eps).
 *
 * Operands: x; weight, bias, each (c) or 0; residual, or 0; y. Numbers: rows, c; ld of x, of the residual, of y;
 * whether centred; eps; the activation. */
void position_norm(const struct call *call) {
    const union number *number = call->number;
    const int64_t rows = number[0].i, ld = number[2].i, other = number[3].i, to = number[4].i;
    const int c = (int)number[1].i, centred = (int)number[5].i, activation = (int)number[7].i;
    const float eps = (float)number[6].r, *weight = call->at[1], *bias = call->at[2];
    for (int64_t row = share(call, rows, 0); row < share(call, rows, 1); row++) {
        const float *x = call->at[0] + row * ld, *residual = call->at[3] ? call->at[3] + row * other : 0;
        float *y = call->at[4] + row * to;
        const float mean = centred ? channel_sum(x, c, 0, 0) / c : 0, square = channel_sum(x, c, mean, 1);
        const float length = __builtin_sqrtf(centred ? square / c + eps : square);
        const float scale = 1.0f / (!centred && length < eps ? eps : length); /* NaN stays NaN */
        for (int i = 0; i < c; i += VL) {
            const int wide = c - i < VL ? c - i : VL;
            vf v = (load_some(x + i, wide) - mean) * scale;
            if (weight) v = v * load_some(weight + i, wide);
            if (bias) v += load_some(bias + i, wide);
            v = activate(v, activation);
            if (residual) v += load_some(residual + i, wide);
            store_some(y + i, v, wide);
        }
    }
}
