/* The time. */
#pragma once
#include <time.h>

/* Seconds since some moment, by a clock that is never set. */
static inline double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
