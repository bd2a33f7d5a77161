/* 3x3 convolution, padding 1, NHWC, by Winograd's F(4 x 4, 3x3): Y = A^T [(G w G^T) * (B^T d B)] A, Lavin and Gray, "Fast
 * algorithms for convolutional neural networks" (2016). A tile d of 6 x 6 inputs gives 4 x 4 outputs with 36
 * multiplications for each pair of channels, not 144. */
#include "plan.h"
#include "product.h"

enum { M = 4, SIDE = M + 2, POINTS = SIDE * SIDE };
enum { LINE = 16 }; /* floats of a cache line */

/* Rows 1 to 4 of B^T d, d being a column (or row) of a tile. */
INLINE void inner_1d(vf d1, vf d2, vf d3, vf d4, vf *t1, vf *t2, vf *t3, vf *t4) {
    const vf even = fused(all(-4), d2, d4), odd = fused(all(-4), d1, d3), e = d4 - d2, o = d3 - d1, o2 = o + o;
    *t1 = even + odd;
    *t2 = even - odd;
    *t3 = e + o2;
    *t4 = e - o2;
}

/* Row 0 of B^T d of d0, d2, d4; its row 5 of d1, d3, d5. */
INLINE vf outer_1d(vf d0, vf d2, vf d4) { return fused(all(4), d0, fused(all(-5), d2, d4)); }

/* A row of B^T d, times B. */
INLINE float *input_row(const vf *t, float *v, long stride) {
    vf u[SIDE];
    inner_1d(t[1], t[2], t[3], t[4], u + 1, u + 2, u + 3, u + 4);
    u[0] = outer_1d(t[0], t[2], t[4]);
    u[5] = outer_1d(t[1], t[3], t[5]);
#pragma GCC unroll 6
    for (int i = 0; i < SIDE; i++, v += stride) store(v, u[i]);
    return v;
}

/* v: B^T d B of a vector of channels of a tile d of x scale + shift; a column of the tile lies `right` after the one
 * before, a row `down`. In two passes, the inner rows and the outer ones, each of which fits in 32 registers. */
INLINE void input_vector(const float *x, long down, long right, vf scale, vf shift, float *v, long stride) {
#define D(r) fused(load(d + (r) * down), scale, shift)
    vf t[4][SIDE];
    const float *d = x;
#pragma GCC unroll 6
    for (int s = 0; s < SIDE; s++, d += right)
        inner_1d(D(1), D(2), D(3), D(4), &t[0][s], &t[1][s], &t[2][s], &t[3][s]);
    float *to = v + SIDE * stride;
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++) to = input_row(t[r], to, stride);
    d = x;
#pragma GCC unroll 6
    for (int s = 0; s < SIDE; s++, d += right) {
        t[0][s] = outer_1d(D(0), D(2), D(4));
        t[1][s] = outer_1d(D(1), D(3), D(5));
    }
    input_row(t[0], v, stride);
    input_row(t[1], to, stride);
#undef D
}

/* The part of a tile's rows (or columns), 0 .. SIDE, that lies within a picture of so many. */
INLINE int first_inside(int start) { return start < 0 ? -start : 0; }
INLINE int end_inside(int start, int count) { return count - start < SIDE ? count - start : SIDE; }

/* v: B^T d B of a tile of x scale + shift, or of x where scale is 0. The padding is 0, not shift. */
INLINE void input_tile(const float *x, long ld, const float *scale, const float *shift, int h, int w, int c, int top,
                       int left, float *v, long stride) {
    const int r0 = first_inside(top), r1 = end_inside(top, h), s0 = first_inside(left), s1 = end_inside(left, w),
              padded = r1 - r0 < SIDE || s1 - s0 < SIDE;
    float tile[POINTS * VL];
    if (padded) memset(tile, 0, sizeof tile);
    x += ((long)top * w + left) * ld;
    for (int i = 0; i < c; i += VL) {
        const int at = vector_at(i, c);
        const float *from = x + at;
        vf a = scale ? load(scale + at) : all(1), b = scale ? load(shift + at) : all(0);
        if (padded) {
            for (int r = r0; r < r1; r++)
                for (int s = s0; s < s1; s++)
                    store(tile + (SIDE * r + s) * VL, fused(load(from + ((long)r * w + s) * ld), a, b));
            from = tile, a = all(1), b = all(0);
        }
        input_vector(from, padded ? SIDE * VL : w * ld, padded ? VL : ld, a, b, v + at, stride);
    }
}

/* A^T s of one column (or row) of a tile */
INLINE void output_1d(vf s0, vf s1, vf s2, vf s3, vf s4, vf s5, vf *y0, vf *y1, vf *y2, vf *y3) {
    const vf a = s1 + s2, b = s1 - s2, c = s3 + s4, d = s3 - s4;
    *y0 = s0 + a + c;
    *y1 = fused(all(2), d, b);
    *y2 = fused(all(4), c, a);
    *y3 = fused(all(8), d, b) + s5;
}

/* y: A^T s A of a vector of channels of a tile s. */
INLINE void output_vector(const float *s, long stride, vf *y) {
    vf t[M][SIDE];
    const long step = SIDE * stride;
#pragma GCC unroll 6
    for (int c = 0; c < SIDE; c++, s += stride)
        output_1d(load(s), load(s + step), load(s + 2 * step), load(s + 3 * step), load(s + 4 * step),
                  load(s + 5 * step), &t[0][c], &t[1][c], &t[2][c], &t[3][c]);
#pragma GCC unroll 4
    for (int r = 0; r < M; r++, y += M)
        output_1d(t[r][0], t[r][1], t[r][2], t[r][3], t[r][4], t[r][5], y, y + 1, y + 2, y + 3);
}

/* Where results go, and what is added to them: a bias (o) or 0, then an activation, then a residual or 0. */
struct tile_output {
    const float *bias, *residual;
    float *y;
    long residual_ld, ld; /* from one position to the next */
    int activation;
};

INLINE void output_tile(const float *from, long stride, int h, int w, int o, int top, int left,
                        struct tile_output to) {
    for (int i = 0; i < o; i += VL) {
        const int at = vector_at(i, o);
        vf s[M * M];
        output_vector(from + at, stride, s);
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

/* Tiles in a block: so few that their transforms fill less than half of a second-level cache of 1 MiB, but enough to
 * compute for as long as the weights take to come from the third level, because every block reads them all. */
INLINE int most_tiles(int c, int o) {
    const int fit = 100000 / (POINTS * (rounded_up(c) + rounded_up(o)));
    return fit < 12 ? 12 : fit;
}

/* How far the tiles of a point lie after those of the one before. It is an odd number of cache lines, so that the 36
 * vectors of a tile lie in different sets of the cache: the transforms then take half the time or less. */
INLINE int64_t point_stride(int tiles, int channels) {
    return (((int64_t)tiles * rounded_up(channels) + LINE - 1) / LINE | 1) * LINE;
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

/* Ask for the channels at positions begin .. end - 1: the transforms touch them in patches, which the hardware does not
 * foresee. */
INLINE void prefetch(const float *x, long ld, int channels, int64_t begin, int64_t end) {
    for (x += begin * ld; begin < end; begin++, x += ld)
        for (int i = 0; i < channels; i += LINE) __builtin_prefetch(x + i);
}

INLINE void convolve(const struct call *call, struct sizes s) {
    const int h = s.h, w = s.w, c = s.c, o = s.o, down = (h + M - 1) / M, across = (w + M - 1) / M,
              wide = rounded_up(o);
    const int most = most_tiles(c, o);
    const long each = (long)down * across, tiles = s.n * each, positions = (long)s.n * h * w;
    /* Whether the pictures exceed the second-level cache: fetching them takes up to 20 % off eight of 32 x 32. */
    const int far = positions * (c + o) >= 1 << 18;
    const int64_t in = point_stride(most, c), out = point_stride(most, o);
    const long blocks = count_blocks(tiles, most, call->parts);
    const float *x = call->at[0], *scales = call->at[1], *u = call->at[2], *bias = call->at[3], *residual = call->at[4];
    float *v = call->space, *products = v + POINTS * in; /* both (36, tiles, channels) */
    for (long b = share(call, blocks, 0); b < share(call, blocks, 1); b++) {
        const long from = tiles * b / blocks;
        const int many = (int)(tiles * (b + 1) / blocks - from);
        const long first = from / across, next = (from + many - 1) / across + 1; /* rows of tiles */
        const int64_t begin = (first / down * h + first % down * M) * w, end = (next / down * h + next % down * M) * w;
        if (far) prefetch(x, s.ld, c, begin, end < positions ? end + w : end);
        for (int t = 0; t < many; t++) {
            const long image = (from + t) / each, place = (from + t) % each;
            const float *scale = scales ? scales + 2 * image * c : 0;
            input_tile(x + image * h * w * s.ld, s.ld, scale, scale ? scale + c : 0, h, w, c,
                       (int)(place / across) * M - 1, (int)(place % across) * M - 1,
                       v + (int64_t)t * rounded_up(c), in);
        }
        for (int f = 0; f < POINTS; f++)
            product_panels(many, wide, c, v + f * in, rounded_up(c), u + (long)f * c * wide, products + f * out, wide);
        if (far) prefetch(call->at[5], s.result_ld, o, begin, end);
        if (far && residual) prefetch(residual, s.residual_ld, o, begin, end);
        for (int t = 0; t < many; t++) {
            const long image = (from + t) / each, place = (from + t) % each, start = image * h * w;
            const struct tile_output to = {.bias = bias ? bias + image * s.apart : 0,
                                      .residual = residual ? residual + start * s.residual_ld : 0,
                                      .y = call->at[5] + start * s.result_ld,
                                      .residual_ld = s.residual_ld,
                                      .ld = s.result_ld,
                                      .activation = s.activation};
            output_tile(products + (long)t * wide, out, h, w, o, (int)(place / across) * M,
                        (int)(place % across) * M, to);
        }
    }
}

int64_t winograd_space(const union number *number) {
    const int c = (int)number[3].i, o = (int)number[4].i;
    return POINTS * (point_stride(most_tiles(c, o), c) + point_stride(most_tiles(c, o), o));
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
