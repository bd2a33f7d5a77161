/* What this processor could do at most, for reports that compare a kernel with it. */
#include "vectors.h"
#include <time.h>

enum { CHAINS = 12, STEPS = 100000 }; /* chains: more than the latency of a multiply-add, fewer than the registers */

static double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Float32 multiply-adds a second of one thread, measured on independent chains of them for that long. */
double multiply_adds(double seconds) {
    vf s[CHAINS];
    volatile float sink;
    int64_t rounds = 0;
    double taken;
    for (int i = 0; i < CHAINS; i++) s[i] = all((float)i);
    const double start = seconds_now();
    do {
        const vf factor = all(0.5f), term = all(1);
        for (int k = 0; k < STEPS; k++) {
#pragma GCC unroll 12
            for (int i = 0; i < CHAINS; i++) s[i] = fused(s[i], factor, term);
        }
        rounds++;
        taken = seconds_now() - start;
    } while (taken < seconds);
    for (int i = 1; i < CHAINS; i++) s[0] += s[i];
    sink = sum(s[0]); /* so that the chains are computed */
    (void)sink;
    return (double)rounds * STEPS * CHAINS * VL / taken;
}
