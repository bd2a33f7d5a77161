/* The blocks of a product, compiled once for all kernels. */
#include "product.h"

/* load, exactly once: of a plain one GCC makes an operand of every multiplication, and blocks of few rows then wait for
 * the loads (four rows: 84, not 115 GFLOP/s on an AMD EPYC). */
INLINE vf load_once(const float *p) {
    typedef volatile float vector __attribute__((vector_size(4 * VL), aligned(4), may_alias));
    const vector *at = (const vector *)p;
    return (vf)*at;
}

/* rows by columns VL of C. Callers pass rows and columns as constants, so that the sums stay in registers. */
INLINE void block(const int rows, const int columns, int k, const float *a, long ra, long ca, const float *b, long rb,
                  float *c, long rc) {
    vf s[ROWS][2];
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++)
        s[i][0] = s[i][1] = (vf){0};
    for (int q = 0; q < k; q++) {
        const vf b0 = load_once(b), b1 = columns > 1 ? load_once(b + VL) : b0;
#pragma GCC unroll 12
        for (int i = 0; i < rows; i++) {
            vf v = all(a[i * ra]);
            s[i][0] = fused(v, b0, s[i][0]);
            if (columns > 1) s[i][1] = fused(v, b1, s[i][1]);
        }
        a += ca;
        b += rb;
    }
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++) {
        store(c + i * rc, s[i][0]);
        if (columns > 1) store(c + i * rc + VL, s[i][1]);
    }
}

/* m rows, in blocks of nearly the same height, because in one of one or two rows the loads take longer than the
 * multiplications. */
INLINE void strip(const int columns, int m, int k, const float *a, long ra, long ca, const float *b, long rb, float *c,
                  long rc) {
    for (int blocks = (m + ROWS - 1) / ROWS; blocks > 0; blocks--) {
        const int rows = (m + blocks - 1) / blocks;
        switch (rows) {
#define CASE(n)                                                                                                        \
    case n: block(n, columns, k, a, ra, ca, b, rb, c, rc); break;
            CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if ROWS > 6
            CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
#undef CASE
        }
        m -= rows, a += rows * ra, c += rows * rc;
    }
}

/* A function of its own, because both products end with it. */
SHARED void narrow_strip(int m, int k, const float *a, long ra, long ca, const float *b, long rb, float *c, long rc) {
    strip(1, m, k, a, ra, ca, b, rb, c, rc);
}

void product(int m, int n, int k, const float *a, long ra, long ca, const float *b, long rb, float *c, long rc) {
    int j = 0;
    for (; j + 2 * VL <= n; j += 2 * VL) strip(2, m, k, a, ra, ca, b + j, rb, c + j, rc);
    if (j < n) narrow_strip(m, k, a, ra, ca, b + j, rb, c + j, rc);
}

/* By the blocks of `product` it would take 4 % longer: here their steps are constants. */
void product_panels(int m, int n, int k, const float *a, long ra, const float *b, float *c, long rc) {
    int j = 0;
    for (; j + 2 * VL <= n; j += 2 * VL) strip(2, m, k, a, ra, 1, b + (long)j * k, 2 * VL, c + j, rc);
    if (j < n) narrow_strip(m, k, a, ra, 1, b + (long)j * k, VL, c + j, rc);
}
