/* 3x3 convolution, padding 1, NHWC, by Winograd's F(4x4, 3x3): Lavin and Gray, "Fast algorithms for convolutional
 * neural networks" (2016). A tile of 6x6 inputs gives 4x4 outputs with 36 multiplications a channel pair, not 144. */
#include "product.h"

enum { TILES = 48 }; /* at a time: their transforms stay in the second-level cache */

/* B^T d */
INLINE void input_1d(const vf *d, int step, vf *t, int to) {
    vf d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step], d5 = d[5 * step];
    vf even = d4 - 4.0f * d2, odd = d3 - 4.0f * d1, e = d4 - d2, o = 2.0f * (d3 - d1);
    t[0] = 4.0f * d0 - 5.0f * d2 + d4;
    t[to] = even + odd;
    t[2 * to] = even - odd;
    t[3 * to] = e + o;
    t[4 * to] = e - o;
    t[5 * to] = 4.0f * d1 - 5.0f * d3 + d5;
}

/* A^T m */
INLINE void output_1d(const vf *m, int step, vf *y, int to) {
    vf a = m[step] + m[2 * step], b = m[step] - m[2 * step], c = m[3 * step] + m[4 * step],
       d = m[3 * step] - m[4 * step];
    y[0] = m[0] + a + c;
    y[to] = b + 2.0f * d;
    y[2 * to] = a + 4.0f * c;
    y[3 * to] = b + 8.0f * d + m[5 * step];
}

INLINE void input_tile(const float *x, int h, int w, int c, int top, int left, float *v, long stride) {
    for (int i = 0; i < c; i += VL) {
        int at = i + VL <= c ? i : c - VL; /* the last vector overlaps the one before */
        vf d[36], t[36];
        for (int r = 0; r < 6; r++)
            for (int s = 0; s < 6; s++) {
                int y = top + r, z = left + s;
                d[6 * r + s] = y >= 0 && y < h && z >= 0 && z < w ? load(x + ((long)y * w + z) * c + at) : (vf){0};
            }
        for (int s = 0; s < 6; s++) input_1d(d + s, 6, t + s, 6);
        for (int r = 0; r < 6; r++) input_1d(t + 6 * r, 1, d + 6 * r, 1);
        for (int f = 0; f < 36; f++) store(v + f * stride + at, d[f]);
    }
}

INLINE void output_tile(const float *m, long stride, int h, int w, int o, int top, int left, const float *bias,
                        const float *residual, const int kind, float *y) {
    for (int i = 0; i < o; i += VL) {
        int at = i + VL <= o ? i : o - VL;
        vf s[36], t[24];
        for (int f = 0; f < 36; f++) s[f] = load(m + f * stride + at);
        for (int c = 0; c < 6; c++) output_1d(s + c, 6, t + c, 6);
        for (int r = 0; r < 4; r++) output_1d(t + 6 * r, 1, s + 4 * r, 1);
        vf shift = bias ? load(bias + at) : (vf){0};
        for (int r = 0; r < 4 && top + r < h; r++)
            for (int c = 0; c < 4 && left + c < w; c++) {
                long p = ((long)(top + r) * w + left + c) * o + at;
                vf value = activate(s[4 * r + c] + shift, kind);
                if (residual) value += load(residual + p);
                store(y + p, value);
            }
    }
}

/* x (n, h, w, c); u (36, c, wide), wide being o rounded up to VL; y (n, h, w, o) = kind(conv + bias) + residual.
 * space: threads times winograd_space floats. c and o are at least VL. */
#define CONVOLUTION(NAME, KIND)                                                                                        \
    static void NAME(const float *x, const float *u, const float *bias, const float *residual, float *y, int n, int h, \
                     int w, int c, int o, int threads, float *space) {                                                 \
        int down = (h + 3) / 4, across = (w + 3) / 4, wide = (o + VL - 1) / VL * VL;                                    \
        long each = (long)down * across, tiles = n * each, blocks = (tiles + TILES - 1) / TILES;                       \
        long held = (long)36 * TILES * (c + wide);                                                                     \
        _Pragma("omp parallel for num_threads(threads) schedule(static)") for (int part = 0; part < threads; part++) { \
            float *v = space + part * held, *m = v + (long)36 * TILES * c;                                             \
            for (long b = blocks * part / threads; b < blocks * (part + 1) / threads; b++) {                           \
                long from = b * TILES;                                                                                 \
                int many = tiles - from < TILES ? (int)(tiles - from) : TILES;                                         \
                for (int t = 0; t < many; t++) {                                                                       \
                    long g = from + t, image = g / each, place = g % each;                                             \
                    input_tile(x + image * h * w * c, h, w, c, (int)(place / across) * 4 - 1,                          \
                               (int)(place % across) * 4 - 1, v + (long)t * c, (long)TILES * c);                       \
                }                                                                                                      \
                for (int f = 0; f < 36; f++)                                                                           \
                    product(many, wide, c, v + (long)f * TILES * c, c, 1, u + (long)f * c * wide, wide,                \
                            m + (long)f * TILES * wide, wide);                                                         \
                for (int t = 0; t < many; t++) {                                                                       \
                    long g = from + t, image = g / each, place = g % each, start = image * h * w * o;                  \
                    output_tile(m + (long)t * wide, (long)TILES * wide, h, w, o, (int)(place / across) * 4,            \
                                (int)(place % across) * 4, bias, residual ? residual + start : 0, KIND, y + start);    \
                }                                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
    }

CONVOLUTION(convolution_none, NONE)
CONVOLUTION(convolution_gelu, GELU)
CONVOLUTION(convolution_gelu_tanh, GELU_TANH)
CONVOLUTION(convolution_silu, SILU)
CONVOLUTION(convolution_relu, RELU)

int winograd_vector(void) { return VL; }

long winograd_space(int c, int o) { return (long)36 * TILES * (c + (o + VL - 1) / VL * VL); }

void winograd(const float *x, const float *u, const float *bias, const float *residual, float *y, int n, int h, int w,
              int c, int o, int kind, int threads, float *space) {
    switch (kind) {
    case GELU: convolution_gelu(x, u, bias, residual, y, n, h, w, c, o, threads, space); break;
    case GELU_TANH: convolution_gelu_tanh(x, u, bias, residual, y, n, h, w, c, o, threads, space); break;
    case SILU: convolution_silu(x, u, bias, residual, y, n, h, w, c, o, threads, space); break;
    case RELU: convolution_relu(x, u, bias, residual, y, n, h, w, c, o, threads, space); break;
    default: convolution_none(x, u, bias, residual, y, n, h, w, c, o, threads, space);
    }
}
