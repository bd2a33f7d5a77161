/* 3x3 convolution, padding 1, NHWC, by Winograd's F(m x m, 3x3), m = 4 or 2: Y = A^T [(G w G^T) * (B^T d B)] A, Lavin
 * and Gray, "Fast algorithms for convolutional neural networks" (2016). A tile d of m + 2 by m + 2 inputs gives m x m
 * outputs with (m + 2)^2 multiplications for each pair of channels, not 9 m^2. The functions are inlined with a
 * constant m. */
#include "norm.h"
#include "product.h"

/* B^T d of one column (or row) of a tile */
INLINE void input_1d(const int m, const vf *d, int step, vf *t, int to) {
    vf d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step];
    if (m == 2) {
        t[0] = d0 - d2;
        t[to] = d1 + d2;
        t[2 * to] = d2 - d1;
        t[3 * to] = d1 - d3;
    } else {
        vf d4 = d[4 * step], d5 = d[5 * step];
        const vf four = all(4), five = all(-5);
        vf even = fused(-four, d2, d4), odd = fused(-four, d1, d3), e = d4 - d2, o = 2.0f * (d3 - d1);
        t[0] = fused(four, d0, fused(five, d2, d4));
        t[to] = even + odd;
        t[2 * to] = even - odd;
        t[3 * to] = e + o;
        t[4 * to] = e - o;
        t[5 * to] = fused(four, d1, fused(five, d3, d5));
    }
}

/* A^T s of one column (or row) of a tile */
INLINE void output_1d(const int m, const vf *s, int step, vf *y, int to) {
    vf a = s[step] + s[2 * step], b = s[step] - s[2 * step];
    if (m == 2) {
        y[0] = s[0] + a;
        y[to] = b - s[3 * step];
    } else {
        vf c = s[3 * step] + s[4 * step], d = s[3 * step] - s[4 * step];
        y[0] = s[0] + a + c;
        y[to] = fused(all(2), d, b);
        y[2 * to] = fused(all(4), c, a);
        y[3 * to] = fused(all(8), d, b) + s[5 * step];
    }
}

/* v: B^T d B of a tile of x scale + shift, or of x where scale is 0. The padding is 0, not shift. */
INLINE void input_tile(const int m, const float *x, const float *scale, const float *shift, int h, int w, int c,
                       int top, int left, float *v, long stride) {
    const int side = m + 2;
    for (int i = 0; i < c; i += VL) {
        int at = i + VL <= c ? i : c - VL; /* the last vector overlaps the one before */
        vf d[36], t[36], a = scale ? load(scale + at) : all(1), b = scale ? load(shift + at) : all(0);
        for (int r = 0; r < side; r++)
            for (int s = 0; s < side; s++) {
                int y = top + r, z = left + s;
                const float *from = x + ((long)y * w + z) * c + at;
                d[side * r + s] = y >= 0 && y < h && z >= 0 && z < w ? fused(load(from), a, b) : (vf){0};
            }
        for (int s = 0; s < side; s++) input_1d(m, d + s, side, t + s, side);
        for (int r = 0; r < side; r++) input_1d(m, t + side * r, 1, d + side * r, 1);
        for (int f = 0; f < side * side; f++) store(v + f * stride + at, d[f]);
    }
}

INLINE void output_tile(const int m, const float *from, long stride, int h, int w, int o, int top, int left,
                        const float *bias, const float *residual, int activation, float *y) {
    const int side = m + 2;
    for (int i = 0; i < o; i += VL) {
        int at = i + VL <= o ? i : o - VL;
        vf s[36], t[24];
        for (int f = 0; f < side * side; f++) s[f] = load(from + f * stride + at);
        for (int c = 0; c < side; c++) output_1d(m, s + c, side, t + c, side);
        for (int r = 0; r < m; r++) output_1d(m, t + side * r, 1, s + m * r, 1);
        vf shift = bias ? load(bias + at) : (vf){0};
        for (int r = 0; r < m && top + r < h; r++)
            for (int c = 0; c < m && left + c < w; c++) {
                long p = ((long)(top + r) * w + left + c) * o + at;
                vf value = activate(s[m * r + c] + shift, activation);
                if (residual) value += load(residual + p);
                store(y + p, value);
            }
    }
}

/* Tiles in a block: few, so that their transforms stay in the second-level cache; more where the weights exceed that
 * cache, because every block reads all the weights. */
INLINE long most_tiles(int m, int c, int o) {
    long weights = (long)(m + 2) * (m + 2) * c * rounded_up(o) * 4;
    return weights > (1 << 20) ? 96 : 48;
}

/* The number of equal blocks of at most `most` tiles; at least one a thread if there are 4 tiles a thread. */
INLINE long count_blocks(long tiles, long most, int threads) {
    long blocks = (tiles + most - 1) / most;
    return blocks < threads && tiles >= 4 * threads ? threads : blocks;
}

struct images {
    int n, h, w, c, o; /* number, height, width, channels in and out, both at least VL */
};

INLINE void convolve(const int m, int activation, const float *x, const float *scale, const float *u,
                     const float *bias, int apart, const float *residual, float *y, struct images s, int threads,
                     float *space) {
    const int h = s.h, w = s.w, c = s.c, o = s.o, down = (h + m - 1) / m, across = (w + m - 1) / m,
              wide = rounded_up(o), points = (m + 2) * (m + 2);
    const long each = (long)down * across, tiles = s.n * each, most = most_tiles(m, c, o);
    const long blocks = count_blocks(tiles, most, threads), held = points * most * (c + wide);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int part = 0; part < threads; part++) {
        float *v = space + part * held, *products = v + points * most * c;
        for (long b = blocks * part / threads; b < blocks * (part + 1) / threads; b++) {
            const long from = tiles * b / blocks;
            const int many = (int)(tiles * (b + 1) / blocks - from);
            for (int t = 0; t < many; t++) {
                long image = (from + t) / each, place = (from + t) % each;
                const float *a = scale ? scale + 2 * image * c : 0;
                input_tile(m, x + image * h * w * c, a, a ? a + c : 0, h, w, c, (int)(place / across) * m - 1,
                           (int)(place % across) * m - 1, v + (long)t * c, most * c);
            }
            for (int f = 0; f < points; f++)
                product_panels(many, wide, c, v + f * most * c, c, u + (long)f * c * wide, products + f * most * wide,
                               wide);
            for (int t = 0; t < many; t++) {
                long image = (from + t) / each, place = (from + t) % each, start = image * h * w * o;
                output_tile(m, products + (long)t * wide, most * wide, h, w, o, (int)(place / across) * m,
                            (int)(place % across) * m, bias ? bias + image * apart : 0, residual ? residual + start : 0,
                            activation, y + start);
            }
        }
    }
}

int vector_width(void) { return VL; }

long winograd_space(int m, int n, int c, int o, int threads) {
    return 2L * n * c + threads * (m + 2) * (m + 2) * most_tiles(m, c, o) * (c + rounded_up(o));
}

/* y (n, h, w, o) = activation(conv(norm(x)) + bias) + residual. x (n, h, w, c). gain, offset (c): of the norm, none
 * if groups is 0. u ((m + 2)^2, c times o rounded up to VL): the transformed weights, each point's (c, o) in the panels
 * of product_panels. bias (o), or of each picture, o apart (apart = o, else 0), or 0. residual: as y, or 0. space:
 * winograd_space floats. */
void winograd(const float *x, int groups, const float *gain, const float *offset, float eps, const float *u,
              const float *bias, int apart, const float *residual, float *y, int m, int n, int h, int w, int c, int o,
              int activation, int threads, float *space) {
    struct images s = {n, h, w, c, o};
    float *scale = groups ? space : 0, *rest = space + 2L * n * c;
    if (groups) {
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int b = 0; b < n; b++)
            statistics(x + (long)b * h * w * c, h * w, c, groups, gain, offset, eps, scale + 2L * b * c,
                       scale + (2L * b + 1) * c);
    }
    if (m == 2)
        convolve(2, activation, x, scale, u, bias, apart, residual, y, s, threads, rest);
    else
        convolve(4, activation, x, scale, u, bias, apart, residual, y, s, threads, rest);
}
