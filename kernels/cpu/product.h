/* C (m, n) = A (m, k) B (k, n), n a multiple of VL. A has any strides ra, ca; B and C have row strides rb, rc. */
#pragma once
#include "vectors.h"

#if defined(__AVX512F__)
#define ROWS 12 /* 24 sums and 2 vectors of B, of 32 registers */
#else
#define ROWS 6 /* 12 sums, 2 vectors of B and one of A, of 16 registers */
#endif

/* Columns of a panel; rows that a kernel multiplies at a time; queries. */
enum { PANEL = 2 * VL, STACK = 4 * ROWS, QUERIES = 2 * ROWS };

void product(int m, int n, int k, const float *a, long ra, long ca, const float *b, long rb, float *c, long rc);

/* The same with B in panels of 2 VL columns (the last may have VL), each contiguous, so that B is read in order. */
void product_panels(int m, int n, int k, const float *a, long ra, const float *b, float *c, long rc);
