/* 3x3 convolution, padding 1, NHWC, by Winograd's F(4x4, 3x3): Lavin and Gray, "Fast algorithms for convolutional
 * neural networks" (2016). A tile of 6x6 inputs gives 4x4 outputs with 36 multiplications a channel pair, not 144. */
#include "product.h"

/* Tiles at a time: few, so that their transforms stay in the second-level cache, but where the weights are larger than
 * that cache more, for each block reads all of them. */
INLINE long most_tiles(int c, int wide) { return (long)36 * c * wide * 4 > (1 << 20) ? 96 : 48; }

/* The number of blocks of at most so many tiles, equal in size, and for each thread at least one if it can be. */
INLINE long count_blocks(long tiles, long most, int threads) {
    long blocks = (tiles + most - 1) / most;
    return blocks < threads && tiles >= 4 * threads ? threads : blocks;
}

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

/* scale, shift (c): what is done to x on the way, or 0; the padding around x stays 0. */
INLINE void input_tile(const float *x, const float *scale, const float *shift, int h, int w, int c, int top, int left,
                       float *v, long stride) {
    for (int i = 0; i < c; i += VL) {
        int at = i + VL <= c ? i : c - VL; /* the last vector overlaps the one before */
        vf d[36], t[36], a = scale ? load(scale + at) : all(1), b = scale ? load(shift + at) : all(0);
        for (int r = 0; r < 6; r++)
            for (int s = 0; s < 6; s++) {
                int y = top + r, z = left + s;
                const float *from = x + ((long)y * w + z) * c + at;
                d[6 * r + s] = y >= 0 && y < h && z >= 0 && z < w ? load(from) * a + b : (vf){0};
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

/* y (n, h, w, o) = kind(conv(x scale + shift) + bias) + residual. x (n, h, w, c); scale, shift (n, c) or 0;
 * u (36, c, wide), wide being o rounded up to VL; bias (o) or 0; residual like y or 0. c and o are at least VL.
 * space: threads times winograd_space floats. */
#define CONVOLUTION(NAME, KIND)                                                                                        \
    static void NAME(const float *x, const float *scale, const float *shift, const float *u, const float *bias,        \
                     const float *residual, float *y, int n, int h, int w, int c, int o, int threads, float *space) {  \
        int down = (h + 3) / 4, across = (w + 3) / 4, wide = (o + VL - 1) / VL * VL;                                   \
        long each = (long)down * across, tiles = n * each, most = most_tiles(c, wide);                                 \
        long blocks = count_blocks(tiles, most, threads), held = 36 * most * (c + wide);                               \
        _Pragma("omp parallel for num_threads(threads) schedule(static)") for (int part = 0; part < threads; part++) { \
            float *v = space + part * held, *m = v + 36 * most * c;                                                    \
            for (long b = blocks * part / threads; b < blocks * (part + 1) / threads; b++) {                           \
                long from = tiles * b / blocks;                                                                        \
                int many = (int)(tiles * (b + 1) / blocks - from);                                                     \
                for (int t = 0; t < many; t++) {                                                                       \
                    long g = from + t, image = g / each, place = g % each;                                             \
                    input_tile(x + image * h * w * c, scale ? scale + image * c : 0, scale ? shift + image * c : 0, h, \
                               w, c, (int)(place / across) * 4 - 1, (int)(place % across) * 4 - 1, v + (long)t * c,    \
                               most * c);                                                                              \
                }                                                                                                      \
                for (int f = 0; f < 36; f++)                                                                           \
                    product(many, wide, c, v + f * most * c, c, 1, u + (long)f * c * wide, wide,                       \
                            m + f * most * wide, wide);                                                                \
                for (int t = 0; t < many; t++) {                                                                       \
                    long g = from + t, image = g / each, place = g % each, start = image * h * w * o;                  \
                    output_tile(m + (long)t * wide, most * wide, h, w, o, (int)(place / across) * 4,                   \
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

long winograd_space(int c, int o) {
    int wide = (o + VL - 1) / VL * VL;
    return 36 * most_tiles(c, wide) * (c + wide);
}

void winograd(const float *x, const float *scale, const float *shift, const float *u, const float *bias,
              const float *residual, float *y, int n, int h, int w, int c, int o, int kind, int threads,
              float *space) {
#define RUN(NAME) NAME(x, scale, shift, u, bias, residual, y, n, h, w, c, o, threads, space)
    switch (kind) {
    case GELU: RUN(convolution_gelu); break;
    case GELU_TANH: RUN(convolution_gelu_tanh); break;
    case SILU: RUN(convolution_silu); break;
    case RELU: RUN(convolution_relu); break;
    default: RUN(convolution_none);
    }
}
