/* Matrices in the order in which product_panels reads them. */
#pragma once
#include "vectors.h"

/* to (4, columns), rows `wide` apart, <- the matrix whose columns lie `column` apart, a column's elements together. */
INLINE void transpose4(const float *from, int columns, int64_t column, float *to, int wide) {
    int j = 0;
    for (; j + 4 <= columns; j += 4) {
        v4 a[4];
        for (int q = 0; q < 4; q++) memcpy(a + q, from + (j + q) * column, sizeof *a);
        for (int i = 0; i < 4; i++) {
            const v4 row = {a[0][i], a[1][i], a[2][i], a[3][i]};
            memcpy(to + i * wide + j, &row, sizeof row);
        }
    }
    for (; j < columns; j++)
        for (int i = 0; i < 4; i++) to[i * wide + j] = from[j * column + i];
}

/* The (rows, columns) matrix of these strides in panels of 2 VL columns (the last may have VL), with zeros up to a
 * whole vector. */
SHARED void pack(const float *from, int rows, int columns, int64_t row, int64_t column, float *to) {
    for (int j = 0; j < columns; j += 2 * VL) {
        const int wide = columns - j > VL ? 2 * VL : VL, many = columns - j < wide ? columns - j : wide;
        const float *x = from + j * column;
        int i = 0;
        if (row == 1)
            for (; i + 4 <= rows; i += 4) transpose4(x + i, many, column, to + i * wide, wide);
        for (; i < rows; i++)
            if (column == 1)
                memcpy(to + i * wide, x + i * row, many * sizeof *x);
            else
                for (int q = 0; q < many; q++) to[i * wide + q] = x[i * row + q * column];
        for (i = 0; i < rows; i++)
            for (int q = many; q < wide; q++) to[i * wide + q] = 0;
        to += (int64_t)rows * wide;
    }
}
