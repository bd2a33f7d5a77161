/* Philox4x32-10 (Salmon et al. 2011) and the normals of Box and Muller (1958) made from it: the bits of
 * kernels/philox.py, so the operations are in its order and none is fused. */
#pragma once
#include "plan.h"
#include "vectors.h"

typedef uint32_t vu __attribute__((vector_size(4 * VL)));
typedef uint64_t vq __attribute__((vector_size(4 * VL)));

/* The products of the even entries, of 64 bits each. */
INLINE vq even_products(vu a, uint32_t m) {
#if defined(__FMA__) && VL == 16
    return (vq)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi32((int)m));
#elif defined(__AVX2__) && VL == 8
    return (vq)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi32((int)m));
#else
    return ((vq)a & 0xffffffff) * (uint64_t)m;
#endif
}

/* The high and the low words of a m. */
INLINE void wide_product(vu a, uint32_t m, vu *high, vu *low) {
    const vq even = even_products(a, m), odd = even_products((vu)((vq)a >> 32), m);
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "an even entry is taken to be the low half of 64 bits"
#endif
    *high = (vu)(even >> 32 | (odd & 0xffffffff00000000));
    *low = (vu)((even & 0xffffffff) | odd << 32);
}

/* The words of a counter, in place. */
INLINE void philox4x32(vu counter[4], uint32_t key0, uint32_t key1) {
#pragma GCC unroll 10
    for (int round = 0; round < 10; round++) {
        vu high0, low0, high1, low1;
        wide_product(counter[0], 0xD2511F53, &high0, &low0);
        wide_product(counter[2], 0xCD9E8D57, &high1, &low1);
        counter[0] = high1 ^ counter[1] ^ key0;
        counter[1] = low1;
        counter[2] = high0 ^ counter[3] ^ key1;
        counter[3] = low0;
        key0 += 0x9E3779B9; /* Weyl sequences */
        key1 += 0xBB67AE85;
    }
}

INLINE vf square_root(vf x) {
#if defined(__FMA__) && VL == 16
    return (vf)_mm512_sqrt_ps((__m512)x);
#elif defined(__FMA__) && VL == 8
    return (vf)_mm256_sqrt_ps((__m256)x);
#else
    for (int i = 0; i < VL; i++) x[i] = __builtin_sqrtf(x[i]);
    return x;
#endif
}

/* Cephes' logf, for u in (0, 1) that is not subnormal. */
INLINE vf logarithm(vf u) {
    const vi bits = (vi)u;
    const vf f = (vf)((bits & 0x007fffff) | 0x3f000000); /* u = f 2^e, f in [1/2, 1) */
    const vi small = f < 0.70710678f;
    const vf e = __builtin_convertvector((bits >> 23) - 126 + small, vf), x = pick(small, f + f, f) - 1.0f, z = x * x;
    vf y = all(7.0376836292e-2f);
    y = y * x + -1.1514610310e-1f;
    y = y * x + 1.1676998740e-1f;
    y = y * x + -1.2420140846e-1f;
    y = y * x + 1.4249322787e-1f;
    y = y * x + -1.6668057665e-1f;
    y = y * x + 2.0000714765e-1f;
    y = y * x + -2.4999993993e-1f;
    y = y * x + 3.3333331174e-1f;
    y = y * x * z - e * 2.12194440e-4f - z * 0.5f;
    return (x + y) + e * 0.693359375f;
}

/* Sine and cosine of 2 pi odd 2^-24, odd in 0 .. 2^24 - 1: an exact quadrant and remainder, then Cephes' sinf and
 * cosf. */
INLINE void sine_cosine(vi odd, vf *sine, vf *cosine) {
    const vi quadrant = (odd + (1 << 21)) >> 22;
    const vf y = __builtin_convertvector(odd - (quadrant << 22), vf) * (float)(0x1p-22 * (3.14159265358979323846 / 2)),
             z = y * y;
    const vf s = ((z * -1.9515295891e-4f + 8.3321608736e-3f) * z + -1.6666654611e-1f) * z * y + y;
    const vf c =
        ((z * 2.443315711809948e-5f + -1.388731625493765e-3f) * z + 4.166664568298827e-2f) * (z * z) - z * 0.5f + 1.0f;
    const vi swap = -(quadrant & 1);
    /* A number's sign changes with its highest bit. */
    *sine = (vf)((vi)pick(swap, c, s) ^ (quadrant & 2) << 30);
    *cosine = (vf)((vi)pick(swap, s, c) ^ ((quadrant + 1) & 2) << 30);
}

/* Two normals from two words: u = ((word >> 9) + 1/2) 2^-23, sqrt(-2 ln u0) (cos, sin)(2 pi u1). */
INLINE void box_muller(vu word0, vu word1, vf *z0, vf *z1) {
    const vi odd0 = (vi)(word0 >> 9 << 1 | 1), odd1 = (vi)(word1 >> 9 << 1 | 1);
    const vf radius = square_root(logarithm(__builtin_convertvector(odd0, vf) * 0x1p-24f) * -2.0f);
    vf sine, cosine;
    sine_cosine(odd1, &sine, &cosine);
    *z0 = radius * cosine;
    *z1 = radius * sine;
}

/* a0 b0 a1 b1 ... in two vectors. */
INLINE void interleave(vf a, vf b, vf *first, vf *second) {
#if defined(__clang__)
#pragma GCC unroll 8
    for (int i = 0; i < VL / 2; i++) {
        (*first)[2 * i] = a[i], (*first)[2 * i + 1] = b[i];
        (*second)[2 * i] = a[VL / 2 + i], (*second)[2 * i + 1] = b[VL / 2 + i];
    }
#else
    const vi from = (counted() >> 1) + (counted() & 1) * VL; /* the entries of b are counted from VL */
    *first = __builtin_shuffle(a, b, from);
    *second = __builtin_shuffle(a, b, from + VL / 2);
#endif
}

/* z: the normals of elements from .. to - 1 of a sample for one draw; `from` is a multiple of 4. key: two int64, the
 * seed and the sample from which `sample` counts. The counter is (element / 4, draw, sample low, sample high), the key
 * of Philox the seed's low and high words. */
SHARED void normals_of(const void *key, int64_t sample, uint32_t draw, int64_t from, int64_t to, float *z) {
    uint64_t given[2];
    memcpy(given, key, sizeof given);
    const uint64_t index = given[1] + (uint64_t)sample;
    for (; from < to; from += 4 * VL, z += 4 * VL) {
        const vu zero = {0};
        vu word[4] = {(vu)counted() + (uint32_t)(from / 4), zero + draw, zero + (uint32_t)index,
                      zero + (uint32_t)(index >> 32)};
        vf value[4], pair[4], made[4];
        philox4x32(word, (uint32_t)given[0], (uint32_t)(given[0] >> 32));
        box_muller(word[0], word[1], &value[0], &value[1]);
        box_muller(word[2], word[3], &value[2], &value[3]);
        interleave(value[0], value[2], &pair[0], &pair[1]);
        interleave(value[1], value[3], &pair[2], &pair[3]);
        interleave(pair[0], pair[2], &made[0], &made[1]);
        interleave(pair[1], pair[3], &made[2], &made[3]);
        const int64_t left = to - from;
        memcpy(z, made, (left < 4 * VL ? (size_t)left : 4 * VL) * sizeof *z);
    }
}
