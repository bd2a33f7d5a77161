/* Sums and means over some dimensions. */
#include "places.h"
#include "vectors.h"

enum { OUTER = 4, RUN = 64 }; /* of each kind but the innermost; vectors that are added without pairing */

/* Pairwise summation of what comes one by one, so that the error grows with the logarithm of their number: level i
 * holds a sum of 2^i of them where bit i of their count is set. */
struct pairwise {
    int64_t count;
    vf level[64];
};

INLINE void pairwise_add(struct pairwise *sums, vf v) {
    int i = 0;
    for (int64_t n = sums->count++; n & 1; n >>= 1) v += sums->level[i++];
    sums->level[i] = v;
}

INLINE vf pairwise_total(const struct pairwise *sums) {
    vf v = {0};
    for (int i = 0; sums->count >> i; i++)
        if (sums->count >> i & 1) v += sums->level[i];
    return v;
}

/* The sum of `count` vectors, of which the first `wide` entries count. */
INLINE vf run_sum(const float *x, int64_t step, int count, int wide) {
    vf s[4] = {{0}};
    int i = 0;
    for (; i + 4 <= count; i += 4)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) s[j] += load_some(x + (i + j) * step, wide);
    for (; i < count; i++) s[0] += load_some(x + i * step, wide);
    return (s[0] + s[1]) + (s[2] + s[3]);
}

static void add_runs(struct pairwise *sums, const float *x, int64_t step, int64_t count, int wide) {
    for (int64_t i = 0; i < count; i += RUN) {
        const int many = (int)(count - i < RUN ? count - i : RUN);
        const float *from = x + i * step;
        pairwise_add(sums, wide == VL ? run_sum(from, step, many, VL) : run_sum(from, step, many, wide));
    }
}

int64_t reduce_space(const union number *number) { return 0; }

/* y = sums of x over some dimensions, divided by a number. Operands: x; y. Numbers: the sizes of four dimensions that
 * are kept, their strides in x, in y; the size of one more, whose stride in x is 1, its stride in y; the sizes of four
 * dimensions that are summed over, their strides; the size and the stride of one more; the divisor. Either the last
 * dimension of those summed over has stride 1, or that of those kept gives the vectors. */
void reduce(const struct call *call) {
    const union number *kept = call->number, *from = kept + OUTER, *to = from + OUTER, *lanes = to + OUTER,
                       *outer = lanes + 2, *apart = outer + OUTER, *inner = apart + OUTER;
    const int64_t across = lanes[0].i, n = inner[0].i, step = inner[1].i, runs = elements(outer, OUTER);
    const float divisor = (float)inner[2].r;
    const int rows = step == 1; /* summed over a vector's entries too */
    const int most = rows ? 1 : VL;
    const int64_t steps = (across + most - 1) / most, tasks = elements(kept, OUTER) * steps;
    const int64_t last = share(call, tasks, 1);
    for (int64_t task = share(call, tasks, 0); task < last; task++) {
        const int64_t outside = task / steps, first = task % steps * most;
        const int wide = (int)(across - first < most ? across - first : most);
        const float *x = call->at[0] + element_offset(outside, kept, from, OUTER) + first;
        float *y = call->at[1] + element_offset(outside, kept, to, OUTER) + first * lanes[1].i;
        struct pairwise sums;
        sums.count = 0; /* the levels need no value */
        for (int64_t run = 0; run < runs; run++) {
            const float *at = x + element_offset(run, outer, apart, OUTER);
            if (rows) {
                add_runs(&sums, at, VL, n / VL, VL);
                if (n % VL) add_runs(&sums, at + n / VL * VL, VL, 1, (int)(n % VL));
            } else {
                add_runs(&sums, at, step, n, wide);
            }
        }
        const vf result = pairwise_total(&sums);
        if (rows)
            *y = sum(result) / divisor;
        else
            for (int i = 0; i < wide; i++) y[i * lanes[1].i] = result[i] / divisor;
    }
}
