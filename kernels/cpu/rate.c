/* How fast a core is, for the benchmarks. */
#include "vectors.h"
#include <time.h>

enum { CHAINS = 12, STEPS = 10000 }; /* more chains than a multiply-add takes cycles, in 14 registers */

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Multiply-adds a second on this thread, in chains that do not wait for each other or for memory; takes about so many
 * seconds. */
int64_t multiply_adds(double seconds) {
    vf x[CHAINS];
    for (int i = 0; i < CHAINS; i++) x[i] = all((float)i);
    const vf factor = all(0.5f), added = all(1.0f); /* all go to 2 */
    const double began = now();
    double taken;
    int64_t rounds = 0;
    do {
        for (int step = 0; step < STEPS; step++)
#pragma GCC unroll 12
            for (int i = 0; i < CHAINS; i++) x[i] = fused(x[i], factor, added);
        rounds++;
        taken = now() - began;
    } while (taken < seconds);
    vf all_of_them = x[0];
    for (int i = 1; i < CHAINS; i++) all_of_them += x[i];
    volatile float used = sum(all_of_them); /* so that the compiler leaves nothing out */
    (void)used;
    return (int64_t)((double)rounds * STEPS * CHAINS * VL / taken);
}
