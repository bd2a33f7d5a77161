/* Matrices in the order in which product_panels reads them. */
#pragma once
#include "vectors.h"

/* The (rows, columns) matrix of these strides in panels of 2 VL columns (the last may have VL), with zeros up to a whole
 * vector. */
SHARED void pack(const float *from, int rows, int columns, int64_t row, int64_t column, float *to) {
    for (int j = 0; j < columns; j += 2 * VL) {
        const int wide = columns - j > VL ? 2 * VL : VL, many = columns - j < wide ? columns - j : wide;
        for (int i = 0; i < rows; i++, to += wide) {
            const float *x = from + i * row + j * column;
            if (column == 1)
                memcpy(to, x, many * sizeof *x);
            else
                for (int q = 0; q < many; q++) to[q] = x[q * column];
            for (int q = many; q < wide; q++) to[q] = 0;
        }
    }
}
