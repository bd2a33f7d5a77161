/* What this processor can do at most, for reports that compare a kernel with it. */
#include "clock.h"
#include "plan.h"
#include "vectors.h"

enum { CHAINS = 12, STEPS = 100000 }; /* chains: more than the latency of a multiply-add, fewer than the registers */

/* Float32 multiply-adds a second of one thread: the best round of independent chains of them, in so many seconds. */
EXPORTED int64_t multiply_adds(double seconds) {
    const double until = seconds_now() + seconds;
    double best = 0, begin, end;
    volatile float used; /* so that the chains are computed */
    do {
        vf s[CHAINS];
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++) s[i] = all((float)i);
        begin = seconds_now();
        for (int k = 0; k < STEPS; k++) {
#pragma GCC unroll 12
            for (int i = 0; i < CHAINS; i++) s[i] = fused(s[i], all(0.5f), all(1));
        }
        for (int i = 1; i < CHAINS; i++) s[0] += s[i];
        used = sum(s[0]);
        (void)used;
        end = seconds_now();
        const double rate = (double)STEPS * CHAINS * VL / (end - begin);
        best = rate > best ? rate : best;
    } while (end < until);
    return (int64_t)best;
}
