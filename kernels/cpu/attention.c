/* The whole residual linear-attention block, by the equations in kernels/attention_block.py, one picture at a time. */
#include "product.h"

enum { POSITIONS = 24 }; /* of queries at a time */

long attention_space(int p, int c, int heads, int d, int threads) {
    long hd = (long)heads * d, cw = rounded_up(c);
    return threads * ((long)p * c + p * hd + c * hd + hd * cw + POSITIONS * (hd + cw) + (long)d * d + 2 * hd);
}

/* out = (x - mean) / sqrt(var + eps) over all of a picture. */
INLINE void normalise(const float *x, float *out, long count, float eps) {
    vf s = {0};
    long i = 0;
    float total = 0, square = 0;
    for (; i + VL <= count; i += VL) s += load(x + i);
    for (total = sum(s); i < count; i++) total += x[i];
    float mean = total / count;
    s = (vf){0};
    for (i = 0; i + VL <= count; i += VL) {
        vf v = load(x + i) - mean;
        s += v * v;
    }
    for (square = sum(s); i < count; i++) square += (x[i] - mean) * (x[i] - mean);
    float scale = 1.0f / __builtin_sqrtf(square / count + eps);
    for (i = 0; i + VL <= count; i += VL) store(out + i, (load(x + i) - mean) * scale);
    for (; i < count; i++) out[i] = (x[i] - mean) * scale;
}

/* k (p, hd) <- exp(k - top), top (hd) being each column's maximum; sums (hd): the columns' sums. */
INLINE void column_exponentials(float *k, int p, int hd, float *top, float *sums) {
    for (int j = 0; j < hd; j += VL) {
        vf t = load(k + j), s = {0};
        for (int q = 1; q < p; q++) t = maximum(t, load(k + (long)q * hd + j));
        for (int q = 0; q < p; q++) {
            vf e = exponential(load(k + (long)q * hd + j) - t);
            store(k + (long)q * hd + j, e);
            s += e;
        }
        store(top + j, t);
        store(sums + j, s);
    }
}

/* q <- softmax(q + bias) over each head's d entries. */
INLINE void softmax(float *q, const float *bias, int heads, int d) {
    for (int h = 0; h < heads; h++, q += d, bias += d) {
        vf t = load(q) + load(bias);
        for (int j = VL; j < d; j += VL) t = maximum(t, load(q + j) + load(bias + j));
        float top = t[0];
        for (int j = 1; j < VL; j++) top = t[j] > top ? t[j] : top;
        vf s = {0};
        for (int j = 0; j < d; j += VL) {
            vf e = exponential(load(q + j) + load(bias + j) - top);
            store(q + j, e);
            s += e;
        }
        float scale = 1.0f / sum(s);
        for (int j = 0; j < d; j += VL) store(q + j, load(q + j) * scale);
    }
}

/* y = LayerNorm(v + constant) gain + x over c channels. v has rounded_up(c) entries and is overwritten. */
INLINE void channel_norm(float *v, const float *constant, const float *gain, const float *x, float *y, int c) {
    vf s = {0};
    int whole = c / VL * VL;
    for (int j = 0; j < whole; j += VL) {
        vf a = load(v + j) + load(constant + j);
        store(v + j, a);
        s += a;
    }
    float total = sum(s), square = 0;
    for (int j = whole; j < c; j++) total += v[j] += constant[j];
    float mean = total / c;
    s = (vf){0};
    for (int j = 0; j < whole; j += VL) {
        vf a = load(v + j) - mean;
        s += a * a;
    }
    square = sum(s);
    for (int j = whole; j < c; j++) square += (v[j] - mean) * (v[j] - mean);
    float scale = 1.0f / __builtin_sqrtf(square / c + 1e-5f);
    for (int i = 0; i < c; i += VL) {
        int at = i + VL <= c ? i : c - VL;
        store(y + at, (load(v + at) - mean) * scale * load(gain + at) + load(x + at));
    }
}

/* x, y (n, p, c); wq, wk (c, hd); q_bias (hd). The values, transposed as `product` takes them: A^T in first (heads, c,
 * cw) with second 0; or W_v^T in first (heads, c, d), W_out^T in second (heads, d, cw), cw being c rounded up. constant,
 * gain (c); where gain is 0, y is the attention's output alone. d is a multiple of VL, c at least VL. space:
 * attention_space floats. */
void attention(const float *x, float *y, int n, int p, int c, int heads, int d, const float *wq, const float *wk,
               const float *q_bias, const float *first, const float *second, const float *constant, const float *gain,
               float scale, float eps, int threads, float *space) {
    const int hd = heads * d, cw = rounded_up(c);
    const long held = attention_space(p, c, heads, d, 1);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int part = 0; part < threads; part++) {
        float *xh = space + part * held, *k = xh + (long)p * c, *mixed = k + (long)p * hd, *m = mixed + (long)c * hd,
              *q = m + (long)hd * cw, *v = q + POSITIONS * hd, *small = v + POSITIONS * cw, *top = small + d * d,
              *sums = top + hd;
        for (long b = (long)n * part / threads; b < (long)n * (part + 1) / threads; b++) {
            const float *from = x + b * p * c;
            float *to = y + b * p * c;
            normalise(from, xh, (long)p * c, eps);
            product(p, hd, c, xh, c, 1, wk, hd, k, hd);
            column_exponentials(k, p, hd, top, sums);
            product(c, hd, p, xh, 1, c, k, hd, mixed, hd);
            for (int j = 0; j < hd; j++) sums[j] = scale / sums[j];
            for (int i = 0; i < c; i++)
                for (int j = 0; j < hd; j += VL)
                    store(mixed + i * hd + j, load(mixed + i * hd + j) * load(sums + j));
            for (int h = 0; h < heads; h++) {
                float *of = m + (long)h * d * cw;
                if (second) {
                    product(d, d, c, mixed + h * d, 1, hd, first + (long)h * c * d, d, small, d);
                    product(d, cw, d, small, d, 1, second + (long)h * d * cw, cw, of, cw);
                } else {
                    product(d, cw, c, mixed + h * d, 1, hd, first + (long)h * c * cw, cw, of, cw);
                }
            }
            for (int at = 0; at < p; at += POSITIONS) {
                int many = p - at < POSITIONS ? p - at : POSITIONS;
                product(many, hd, c, xh + (long)at * c, c, 1, wq, hd, q, hd);
                for (int i = 0; i < many; i++) softmax(q + i * hd, q_bias, heads, d);
                product(many, cw, hd, q, hd, 1, m, cw, v, cw);
                for (int i = 0; i < many; i++) {
                    const long place = (long)(at + i) * c;
                    if (gain)
                        channel_norm(v + i * cw, constant, gain, from + place, to + place, c);
                    else
                        for (int j = 0; j < c; j++) to[place + j] = v[i * cw + j] + constant[j];
                }
            }
        }
    }
}
