/* 3x3 convolution, padding 1, NHWC, by Winograd's F(4 x 4, 3x3): Y = A^T [(G w G^T) * (B^T d B)] A, Lavin and Gray, "Fast
 * algorithms for convolutional neural networks" (2016). A tile d of 6 x 6 inputs gives 4 x 4 outputs with 36
 * multiplications for each pair of channels, not 144. */
#include "plan.h"
#include "product.h"

enum { M = 4, SIDE = M + 2, POINTS = SIDE * SIDE };

/* B^T d of one column (or row) of a tile */
INLINE void input_1d(const vf *d, int step, vf *t, int to) {
    const vf d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step], d5 = d[5 * step];
    const vf four = all(4), five = all(-5);
    const vf even = fused(-four, d2, d4), odd = fused(-four, d1, d3), e = d4 - d2, o = 2.0f * (d3 - d1);
    t[0] = fused(four, d0, fused(five, d2, d4));
    t[to] = even + odd;
    t[2 * to] = even - odd;
    t[3 * to] = e + o;
    t[4 * to] = e - o;
    t[5 * to] = fused(four, d1, fused(five, d3, d5));
}

/* A^T s of one column (or row) of a tile */
INLINE void output_1d(const vf *s, int step, vf *y, int to) {
    const vf a = s[step] + s[2 * step], b = s[step] - s[2 * step], c = s[3 * step] + s[4 * step],
             d = s[3 * step] - s[4 * step];
    y[0] = s[0] + a + c;
    y[to] = fused(all(2), d, b);
    y[2 * to] = fused(all(4), c, a);
    y[3 * to] = fused(all(8), d, b) + s[5 * step];
}

/* v: B^T d B of a tile of x scale + shift, or of x where scale is 0. The padding is 0, not shift. */
INLINE void input_tile(const float *x, long ld, const float *scale, const float *shift, int h, int w,
                       int c, int top, int left, float *v, long stride) {
    for (int i = 0; i < c; i += VL) {
        int at = i + VL <= c ? i : c - VL; /* the last vector overlaps the one before */
        vf d[36], t[36], a = scale ? load(scale + at) : all(1), b = scale ? load(shift + at) : all(0);
        for (int r = 0; r < SIDE; r++)
            for (int s = 0; s < SIDE; s++) {
                int y = top + r, z = left + s;
                const float *from = x + ((long)y * w + z) * ld + at;
                d[SIDE * r + s] = y >= 0 && y < h && z >= 0 && z < w ? fused(load(from), a, b) : (vf){0};
            }
        for (int s = 0; s < SIDE; s++) input_1d(d + s, SIDE, t + s, SIDE);
        for (int r = 0; r < SIDE; r++) input_1d(t + SIDE * r, 1, d + SIDE * r, 1);
        for (int f = 0; f < SIDE * SIDE; f++) store(v + f * stride + at, d[f]);
    }
}

/* Where results go, and what is added to them: a bias (o) or 0, then an activation, then a residual or 0. */
struct finish {
    const float *bias, *residual;
    float *y;
    long residual_ld, ld; /* from one position to the next */
    int activation;
};

INLINE void output_tile(const float *from, long stride, int h, int w, int o, int top, int left,
                        struct finish to) {
    for (int i = 0; i < o; i += VL) {
        int at = i + VL <= o ? i : o - VL;
        vf s[36], t[24];
        for (int f = 0; f < SIDE * SIDE; f++) s[f] = load(from + f * stride + at);
        for (int c = 0; c < SIDE; c++) output_1d(s + c, SIDE, t + c, SIDE);
        for (int r = 0; r < M; r++) output_1d(t + SIDE * r, 1, s + M * r, 1);
        vf shift = to.bias ? load(to.bias + at) : (vf){0};
        for (int r = 0; r < M && top + r < h; r++)
            for (int c = 0; c < M && left + c < w; c++) {
                long p = (long)(top + r) * w + left + c;
                vf value = activate(s[M * r + c] + shift, to.activation);
                if (to.residual) value += load(to.residual + p * to.residual_ld + at);
                store(to.y + p * to.ld + at, value);
            }
    }
}

/* Tiles in a block: few, so that their transforms stay in the second-level cache; more where the weights exceed that
 * cache, because every block reads all the weights. */
INLINE long most_tiles(int c, int o) {
    long weights = (long)POINTS * c * rounded_up(o) * 4;
    return weights > (1 << 20) ? 96 : 48;
}

/* The number of equal blocks of at most `most` tiles; at least one a part if there are 4 tiles a part. */
INLINE long count_blocks(long tiles, long most, int parts) {
    long blocks = (tiles + most - 1) / most;
    return blocks < parts && tiles >= 4 * parts ? parts : blocks;
}

struct sizes {
    int n, h, w, c, o; /* number, height, width, channels in and out, both at least VL */
    long ld, residual_ld, result_ld, apart;
    int activation;
};

INLINE void convolve(const struct call *call, struct sizes s) {
    const int h = s.h, w = s.w, c = s.c, o = s.o, down = (h + M - 1) / M, across = (w + M - 1) / M,
              wide = rounded_up(o);
    const long each = (long)down * across, tiles = s.n * each, most = most_tiles(c, o);
    const long blocks = count_blocks(tiles, most, call->parts);
    const float *x = call->at[0], *scales = call->at[1], *u = call->at[2], *bias = call->at[3], *residual = call->at[4];
    float *v = call->space, *products = v + POINTS * most * c;
    for (long b = share(call, blocks, 0); b < share(call, blocks, 1); b++) {
        const long from = tiles * b / blocks;
        const int many = (int)(tiles * (b + 1) / blocks - from);
        for (int t = 0; t < many; t++) {
            const long image = (from + t) / each, place = (from + t) % each;
            const float *scale = scales ? scales + 2 * image * c : 0;
            input_tile(x + image * h * w * s.ld, s.ld, scale, scale ? scale + c : 0, h, w, c,
                       (int)(place / across) * M - 1, (int)(place % across) * M - 1, v + (long)t * c, most * c);
        }
        for (int f = 0; f < POINTS; f++)
            product_panels(many, wide, c, v + f * most * c, c, u + (long)f * c * wide, products + f * most * wide, wide);
        for (int t = 0; t < many; t++) {
            const long image = (from + t) / each, place = (from + t) % each, start = image * h * w;
            const struct finish to = {.bias = bias ? bias + image * s.apart : 0,
                                      .residual = residual ? residual + start * s.residual_ld : 0,
                                      .y = call->at[5] + start * s.result_ld,
                                      .residual_ld = s.residual_ld,
                                      .ld = s.result_ld,
                                      .activation = s.activation};
            output_tile(products + (long)t * wide, most * wide, h, w, o, (int)(place / across) * M,
                        (int)(place % across) * M, to);
        }
    }
}

int64_t winograd_space(const union number *number) {
    const int c = (int)number[3].i, o = (int)number[4].i;
    return POINTS * most_tiles(c, o) * (c + rounded_up(o));
}

/* y (n, h, w, o) = activation(conv(x scale + shift) + bias) + residual, x (n, h, w, c); c and o at least VL.
 *
 * Operands: x; scale and shift of a norm (n, 2, c), or 0; the transformed weights (36, c times o rounded up to
 * VL), each point's (c, o) in the panels of product_panels; bias (o) or 0; residual (n, h, w, o) or 0; y. Numbers: n,
 * h, w, c, o; ld of x, of the residual, of y; how far the bias of a picture lies after that of the one before, 0 for the
 * same; the activation. */
void winograd(const struct call *call) {
    const union number *number = call->number;
    const struct sizes s = {.n = (int)number[0].i,
                            .h = (int)number[1].i,
                            .w = (int)number[2].i,
                            .c = (int)number[3].i,
                            .o = (int)number[4].i,
                            .ld = number[5].i,
                            .residual_ld = number[6].i,
                            .result_ld = number[7].i,
                            .apart = number[8].i,
                            .activation = (int)number[9].i};
    convolve(call, s);
}
