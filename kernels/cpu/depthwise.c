/* Depthwise convolution, NHWC, any odd kernel size; the picture keeps its size. */
#include "vectors.h"

enum { ACROSS = 8 }; /* outputs of a row at a time, which share each loaded weight */

long depthwise_space(int h, int w, int c, int size, int threads) {
    return (long)threads * (h + size - 1) * (w + size - 1) * c;
}

INLINE void outputs(const int many, const float *x, long row, int c, const float *weight, int size, vf bias, float *y) {
    vf s[ACROSS];
    for (int i = 0; i < many; i++) s[i] = bias;
    for (int r = 0; r < size; r++)
        for (int q = 0; q < size; q++, weight += c) {
            vf k = load(weight);
            const float *from = x + r * row + (long)q * c;
#pragma GCC unroll 8
            for (int i = 0; i < many; i++) s[i] = fused(load(from + (long)i * c), k, s[i]);
        }
    for (int i = 0; i < many; i++) store(y + (long)i * c, s[i]);
}

/* x, y (n, h, w, c); weight (size, size, c); bias (c), or of each picture, c apart (apart = c, else 0), or 0; c at least
 * VL. space: depthwise_space floats. */
void depthwise(const float *x, const float *weight, const float *bias, int apart, float *y, int n, int h, int w, int c,
               int size, int threads, float *space) {
    const int half = size / 2;
    const long row = (long)(w + size - 1) * c, held = depthwise_space(h, w, c, size, 1);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int part = 0; part < threads; part++) {
        float *padded = space + part * held;
        memset(padded, 0, held * sizeof *padded); /* the border stays 0 for all pictures */
        for (long b = (long)n * part / threads; b < (long)n * (part + 1) / threads; b++) {
            for (int i = 0; i < h; i++)
                memcpy(padded + (i + half) * row + (long)half * c, x + (b * h + i) * w * c, sizeof *x * w * c);
            for (int i = 0; i < c; i += VL) {
                int at = i + VL <= c ? i : c - VL;
                vf shift = bias ? load(bias + b * apart + at) : (vf){0};
                for (int r = 0; r < h; r++) {
                    const float *from = padded + r * row + at;
                    float *to = y + (b * h + r) * w * c + at;
                    int q = 0;
                    for (; q + ACROSS <= w; q += ACROSS)
                        outputs(ACROSS, from + (long)q * c, row, c, weight + at, size, shift, to + (long)q * c);
                    if (q + 4 <= w) {
                        outputs(4, from + (long)q * c, row, c, weight + at, size, shift, to + (long)q * c);
                        q += 4;
                    }
                    for (; q < w; q++)
                        outputs(1, from + (long)q * c, row, c, weight + at, size, shift, to + (long)q * c);
                }
            }
        }
    }
}
