/* Vectors of floats as wide as the processor's registers, by the vector extension of GCC and Clang. */
#pragma once
#include <stdint.h>
#include <string.h>
#if defined(__FMA__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_FMA)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
#define VL 16
#elif defined(__AVX__)
#define VL 8
#else
#define VL 4
#endif

typedef float vf __attribute__((vector_size(4 * VL)));
typedef int32_t vi __attribute__((vector_size(4 * VL)));
#define INLINE static inline __attribute__((always_inline))
#define SHARED static __attribute__((noinline, unused)) /* one copy in each file that uses it */

INLINE vf load(const float *p) {
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE void store(float *p, vf v) { memcpy(p, &v, sizeof v); }
/* n, to whole vectors. */
INLINE int rounded_up(int n) { return (n + VL - 1) / VL * VL; }
/* The first n entries; the rest of the vector is 0 when loaded, and is not stored. */
INLINE vf load_some(const float *p, int n) {
    if (n == VL) return load(p);
#if defined(__AVX512F__)
    return (vf)_mm512_maskz_loadu_ps((__mmask16)((1 << n) - 1), p);
#else
    vf v = {0};
    for (int i = 0; i < n; i++) v[i] = p[i];
    return v;
#endif
}
INLINE void store_some(float *p, vf v, int n) {
    if (n == VL) return store(p, v);
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(p, (__mmask16)((1 << n) - 1), (__m512)v);
#else
    for (int i = 0; i < n; i++) p[i] = v[i];
#endif
}
/* Where the vector of channel i begins, of c channels: the last one overlaps the one before it. Where c is less than a
 * vector there is one, of vector_of(c) entries. */
INLINE int vector_at(int i, int c) { return i + VL <= c || c < VL ? i : c - VL; }
INLINE int vector_of(int c) { return c < VL ? c : VL; }
INLINE vf all(float x) { return x - (vf){0}; }

/* a b + c, rounded once where the processor has that instruction. The compiler must not fuse on its own
 * (-ffp-contract=off): it might in one copy of a loop and not in another, and a sample's bits would then depend on its
 * place in the batch. */
INLINE vf fused(vf a, vf b, vf c) {
#if defined(__FMA__) && VL == 16
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__) && VL == 8
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_FEATURE_FMA) && VL == 4
    return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

INLINE vf pick(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }
/* a > b ? a : b, and with < the minimum; b where either is NaN. */
INLINE vf maximum(vf a, vf b) {
#if defined(__FMA__) && VL == 16
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__FMA__) && VL == 8
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return pick(a > b, a, b);
#endif
}
INLINE vf minimum(vf a, vf b) {
#if defined(__FMA__) && VL == 16
    return (vf)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__FMA__) && VL == 8
    return (vf)_mm256_min_ps((__m256)a, (__m256)b);
#else
    return pick(a < b, a, b);
#endif
}
typedef float v4 __attribute__((vector_size(16)));
typedef int32_t i4 __attribute__((vector_size(16)));
union fours {
    vf whole;
    v4 part[VL / 4];
};
INLINE float sum(vf v) {
    const union fours of = {v};
    v4 s = of.part[0];
#pragma GCC unroll 3
    for (int i = 1; i < VL / 4; i++) s += of.part[i];
    return (s[0] + s[1]) + (s[2] + s[3]);
}
/* The largest entry; of one that is NaN, NaN or another. */
INLINE float largest(vf v) {
    const union fours of = {v};
    v4 most = of.part[0];
#pragma GCC unroll 3
    for (int i = 1; i < VL / 4; i++) {
        const i4 more = of.part[i] > most;
        most = (v4)((more & (i4)of.part[i]) | (~more & (i4)most));
    }
    const float a = most[0] > most[1] ? most[0] : most[1], b = most[2] > most[3] ? most[2] : most[3];
    return a > b ? a : b;
}
/* 0, 1, 2, ... */
INLINE vi counted(void) {
    static const int32_t first[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    vi v;
    memcpy(&v, first, sizeof v);
    return v;
}
/* The first n entries of v, and those of other in place of the rest. */
INLINE vf only(vf v, int n, vf other) { return n == VL ? v : pick(counted() < n, v, other); }

/* e^x = 2^n (1 + p) by Cephes' expf: x = n ln 2 + r, |r| <= ln 2 / 2, p = e^r - 1 a polynomial in r, right near 0 too.
 * Returns p; |x| is below 1000. */
INLINE vf exponential_parts(vf x, vi *n) {
    const vf magic = all(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
    const vf whole = fused(x, all(1.44269504088896341f), magic) - magic;
    vf r = fused(whole, all(-0.693359375f), x);
    r = fused(whole, all(2.12194440e-4f), r);
    vf p = all(1.9875691500e-4f);
    p = fused(p, r, all(1.3981999507e-3f));
    p = fused(p, r, all(8.3334519073e-3f));
    p = fused(p, r, all(4.1665795894e-2f));
    p = fused(p, r, all(1.6666665459e-1f));
    p = fused(p, r, all(5.0000001201e-1f));
    *n = __builtin_convertvector(whole, vi);
    return fused(p, r * r, r);
}
/* 2^n, n from -126 to 127. */
INLINE vf power_of_two(vi n) { return (vf)((n + 127) << 23); }
/* x between two bounds; NaN stays. */
INLINE vf between(float lowest, vf x, float highest) { return minimum(all(highest), maximum(all(lowest), x)); }

/* e^x, of x clamped to -87 .. 88. */
INLINE vf exponential(vf x) {
    vi n;
    const vf p = exponential_parts(between(-87.0f, x, 88.0f), &n) + 1.0f;
    return p * power_of_two(n);
}

/* x / 2 + x erf(x / sqrt 2) / 2. The second term is even: t times a polynomial in t = x^2, a minimax fit up to 5.5^2;
 * from there on it equals |x| / 2 to 1e-7. The absolute error is below 8e-7. There is no division: it takes 0.6 of the
 * time of erf by an exponential (Abramowitz and Stegun, 7.1.26), which is as accurate. */
INLINE vf gelu(vf x) {
    static const float p[] = {-0.000190655555f, 0.000592047756f, -0.000673302915f, 0.000841154775f, -0.00224018167f,
                              0.00447751582f, -0.00692995731f, 0.0103121176f, -0.0149637489f, 0.0203396212f,
                              -0.0260538682f, 0.0320737176f, -0.0387924127f, 0.0477374494f, -0.0641723424f,
                              0.12855193f};
    const float end = 5.5f;
    const vf t = minimum(x * x, all(end * end)), u = fused(t, all(2 / (end * end)), all(-1)); /* u: -1 .. 1 */
    vf s = all(p[0]);
#pragma GCC unroll 16
    for (int i = 1; i < 16; i++) s = fused(s, u, all(p[i]));
    const vf rest = fused(all(-0.5f), minimum(maximum(x, -x), all(end)), maximum(all(0), x)); /* x / 2 up to the end */
    return fused(t, s, rest);
}

enum activation { NONE, GELU, GELU_TANH, SILU, RELU };

INLINE vf activate(vf x, int activation) {
    switch (activation) {
    case GELU:
        return gelu(x);
    case GELU_TANH: /* (1 + tanh u) / 2 = 1 / (1 + e^(-2u)) */
        return x / (1.0f + exponential(-1.5957691216057308f * (x + 0.044715f * x * x * x)));
    case SILU:
        return x / (1.0f + exponential(-x));
    case RELU:
        return pick(x < 0.0f, all(0.0f), x);
    default:
        return x;
    }
}
