/* One step of a sampler; the equations stand at the top of kernels/denoise_step.py. The operations are in the order of
 * its reference, none is fused, and all are element by element, except for the bound of dynamic thresholding. */
#include "philox.h"
#include <math.h>

/* Of a row, in the order of the table's. */
enum column { P, Q, A, B, C, S, O, D, E, U, V, LARGEST };
enum { DEPTH = 3 }; /* how far back the m before are used at most */
static const int FURTHER[DEPTH] = {C, D, E};
enum { PIECE = 256 }; /* positions of a picture that are stepped at a time */
enum clip { UNCLIPPED, LIMIT, SAMPLE, DYNAMIC };
enum { GREATEST = 0x7fffffff }; /* the bits of a NaN that no |number| exceeds */

/* The numbers and operands of a call, by name. */
struct step {
    int64_t pictures, p, ld, conditional; /* positions of a picture; out's ld; pictures before the one with a context */
    int64_t first;                        /* sample of the key that is the first picture */
    int64_t variance_ld;
    int c, clip, further; /* channels; an enum clip; whether other columns than p, q, a, b, c and s are used */
    double clipped;       /* the bound or the quantile */
    float widening;       /* log(S / s), with a variance */
    const float *out, *row, *noise, *bounds, *scale, *variance; /* scale: guidance's g */
    const void *key;
    float *x, *now;             /* where m goes, or 0 */
    const float *before[DEPTH]; /* m_1 to m_3; 0 for what is not there, or has weight 0 and may be uninitialised */
};

/* The ring: row r writes the one at r % depth, and what was remembered `back` rows before lies that many places back. */
static void turn(struct step *step, float *history, int64_t depth, int64_t apart, int64_t row) {
    step->now = history + row % depth * apart;
    for (int back = 1; back <= depth; back++)
        if (step->row[FURTHER[back - 1]] != 0) step->before[back - 1] = history + (row + depth - back) % depth * apart;
}

static struct step step_of(const struct call *call) {
    const union number *number = call->number;
    float *const *at = call->at;
    const float *row = at[2];
    struct step step = {.pictures = number[0].i,
                        .c = (int)number[1].i,
                        .p = number[2].i,
                        .ld = number[3].i,
                        .conditional = number[4].i,
                        .first = number[5].i,
                        .clip = (int)number[6].i,
                        .clipped = number[7].r,
                        .variance_ld = number[10].i,
                        .widening = at[8] && row[S] != 0 ? (float)log((double)row[LARGEST] / row[S]) : 0,
                        .out = at[1],
                        .row = row,
                        .noise = at[4],
                        .key = at[5],
                        .bounds = at[6],
                        .scale = at[7],
                        .variance = row[S] != 0 ? at[8] : 0,
                        .x = at[9]};
    if (at[10]) turn(&step, at[10], number[8].i, number[9].i, call->row);
    step.further = row[O] != 0 || row[U] != 0 || row[V] != 1 || step.before[1] || step.before[2] || step.variance;
    return step;
}

/* How many elements of a picture are stepped at a time. */
static int64_t piece(int64_t c, int64_t p) { return c * (p < PIECE ? p : PIECE); }

int64_t denoise_step_space(const union number *number) {
    const int64_t c = number[1].i, p = number[2].i;
    return 5 * piece(c, p) + 4 * c + (number[6].i == DYNAMIC ? c * p + VL : 0);
}

/* (positions, c), rows ld apart, as dense rows: where they are, or copied to `copy`. */
INLINE const float *dense(const float *out, int64_t positions, int c, int64_t ld, float *copy) {
    if (ld == c) return out;
    for (int64_t i = 0; i < positions; i++)
        for (int j = 0; j < c; j++) copy[i * c + j] = out[i * ld + j];
    return copy;
}

/* Picture b's predictions at positions from .. from + positions - 1. */
struct predictions {
    const float *out, *conditional; /* dense; the latter 0 without guidance */
};

static struct predictions predictions(const struct step *step, int64_t b, int64_t from, int64_t positions,
                                      float *space) {
    const float *out = step->out + (b * step->p + from) * step->ld;
    struct predictions made = {.out = dense(out, positions, step->c, step->ld, space)};
    if (step->scale)
        made.conditional = dense(out + step->conditional * step->p * step->ld, positions, step->c, step->ld,
                                 space + piece(step->c, step->p));
    return made;
}

/* n elements of out. */
INLINE vf guided(const struct step *step, struct predictions one, int64_t i, int n) {
    const vf out = load_some(one.out + i, n);
    return one.conditional ? out + *step->scale * (load_some(one.conditional + i, n) - out) : out;
}

/* p x + q out, not clipped. */
INLINE vf predicted(const float *row, vf x, vf out) { return x * row[P] + out * row[Q]; }

/* How many of the vectors' entries are less than the value; all are positive numbers, or infinite or NaN, and as
 * integers in the order of torch.sort. */
static int64_t less(const float *v, int64_t vectors, int32_t value) {
    vi count = {0};
    for (int64_t i = 0; i < vectors; i++) count -= (vi)load(v + i * VL) < value;
    int64_t total = 0;
    for (int i = 0; i < VL; i++) total += count[i];
    return total;
}

/* The k-th least entry: the largest value that no more than k are less than, found bit by bit. */
static int32_t least(const float *v, int64_t vectors, int64_t k) {
    int32_t value = 0;
    for (int bit = 30; bit >= 0; bit--)
        if (less(v, vectors, value | 1 << bit) <= k) value |= 1 << bit;
    return value;
}

static float number_of(int32_t bits) {
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

/* Dynamic thresholding's bound (Saharia et al. 2022, section 2.3): max(1, quantile of |x0|), by torch.lerp's formula.
 * size has place for a picture and a vector more. */
static float dynamic_bound(const struct step *step, int64_t b, float *size, float *space) {
    const int64_t elements = step->c * step->p, vectors = (elements + VL - 1) / VL;
    const float *x = step->x + b * elements;
    for (int64_t from = 0; from < step->p; from += PIECE) {
        const int64_t positions = step->p - from < PIECE ? step->p - from : PIECE, start = from * step->c;
        const struct predictions one = predictions(step, b, from, positions, space);
        for (int64_t i = 0; i < positions * step->c; i += VL) {
            const int n = (int)(positions * step->c - i < VL ? positions * step->c - i : VL);
            const vi x0 = (vi)predicted(step->row, load_some(x + start + i, n), guided(step, one, i, n));
            store_some(size + start + i, (vf)(x0 & GREATEST), n);
        }
    }
    for (int64_t i = elements; i < vectors * VL; i++) size[i] = number_of(GREATEST);
    const double place = step->clipped * (double)(elements - 1);
    const int64_t below = (int64_t)place;
    const int32_t low = least(size, vectors, below);
    const int32_t high = below + 1 < elements ? least(size, vectors, below + 1) : low;
    const float start = number_of(low), end = number_of(high), weight = (float)(place - (double)below);
    const float bound = weight < 0.5f ? start + weight * (end - start) : end - (end - start) * (1 - weight);
    return bound < 1 ? 1 : bound; /* NaN stays NaN */
}

/* The noise of picture b at positions from .. from + positions - 1, (positions, c): a sample's elements are counted in
 * the order (c, p), so each channel's are made in a row of space, and then read across. */
static const float *normals_at(const struct step *step, int64_t b, uint32_t draw, int64_t from, int64_t positions,
                               float *space) {
    const int64_t sample = step->first + b, whole = positions == step->p, c = step->c;
    const int64_t apart = whole ? positions : positions + 4;
    float *made = space, *across = space + piece(c, step->p) + 4 * c;
    if (whole) normals_of(step->key, sample, draw, 0, c * positions, made);
    for (int64_t j = 0; j < c; j++) {
        const int64_t element = j * step->p + from, before = element % 4;
        float *row = made + j * apart;
        if (!whole) {
            normals_of(step->key, sample, draw, element - before, element + positions, row);
            row += before;
        }
        if (c == 1) return row;
        for (int64_t i = 0; i < positions; i++) across[i * c + j] = row[i];
    }
    return across;
}

/* n elements of the noise, times its standard deviation: s, or s^(1 - f) S^f with f = (variance + 1) / 2. */
INLINE vf scaled(const struct step *step, const float *noise, const float *variance, int64_t i, int n) {
    const vf drawn = load_some(noise + i, n);
    if (!variance) return drawn * step->row[S];
    const vf f = (load_some(variance + i, n) + 1.0f) / 2.0f;
    return drawn * (step->row[S] * exponential(f * step->widening)); /* NaN stays NaN */
}

/* Step n elements from `at` on; the pointers given are at the first of them, or 0. There are two copies, so that what
 * most rows have no use for takes them no time: see step.further. */
INLINE void advance_by(const struct step *step, struct predictions one, int64_t n, float bound, const float *noise,
                       const float *variance, int64_t at, int further) {
    const float *row = step->row;
    const int divide = step->clip == SAMPLE || step->clip == DYNAMIC;
    float *const x = step->x + at, *const now = step->now ? step->now + at : 0;
    const float *before[DEPTH];
    for (int back = 0; back < DEPTH; back++) before[back] = step->before[back] ? step->before[back] + at : 0;
    for (int64_t i = 0; i < n; i += VL) {
        const int wide = (int)(n - i < VL ? n - i : VL);
        const vf v = load_some(x + i, wide), out = guided(step, one, i, wide);
        vf x0 = predicted(row, v, out); /* and then m */
        if (step->clip) x0 = minimum(all(bound), maximum(all(-bound), x0)); /* NaN stays NaN */
        if (divide) x0 = x0 / bound;
        vf next = v * row[A] + x0 * row[B];
        if (further && row[O] != 0) next += out * row[O]; /* else out may be infinite, where x0 is clipped */
        if (now) {
            for (int back = 0; back < (further ? DEPTH : 1); back++)
                if (before[back]) next += load_some(before[back] + i, wide) * row[FURTHER[back]];
            if (further) x0 = x0 * row[V];
            if (further && row[U] != 0) x0 += v * row[U];
            store_some(now + i, x0, wide);
        }
        if (noise) next += scaled(step, noise, further ? variance : 0, i, wide);
        store_some(x + i, next, wide);
    }
}

SHARED void advance(const struct step *step, struct predictions one, int64_t n, float bound, const float *noise,
                    int64_t at) {
    advance_by(step, one, n, bound, noise, 0, at, 0);
}

SHARED void advance_further(const struct step *step, struct predictions one, int64_t n, float bound,
                            const float *noise, const float *variance, int64_t at) {
    advance_by(step, one, n, bound, noise, variance, at, 1);
}

/* Operands: x, out, row, history, noise, key, bounds, scale, variance, x again, history again, the latter two written.
 * x and noise are (pictures, p, c); history too, `depth` times, one for each row in turn; out too, with any ld, and
 * more pictures where guided; variance, with any ld; row (12); key two int64, the seed and a sample; bounds (pictures);
 * scale one number. history, noise, key, bounds, scale and variance may be 0; of noise and key one is.
 *
 * Numbers: pictures, c, p; out's ld; after how many pictures the one with a context follows; how many samples after
 * the key's the first picture is; enum clip; the bound or the quantile, a real; how many the history has; how many
 * elements apart; the variance's ld. */
void denoise_step(const struct call *call) {
    const struct step step = step_of(call);
    const int64_t held = piece(step.c, step.p);
    float *out = call->space, *noise = out + 2 * held, *variance = noise + 2 * held + 4 * step.c;
    float *size = variance + held;
    /* A bound needs all of x, which another part might have stepped; so pictures are shared then, else pieces. */
    const int64_t pieces = (step.p + PIECE - 1) / PIECE;
    const int64_t units = step.clip == DYNAMIC ? step.pictures : step.pictures * pieces;
    const int64_t each = step.clip == DYNAMIC ? pieces : 1;
    const int drawn = step.key && step.row[S] != 0;
    float bound = (float)step.clipped;
    for (int64_t i = share(call, units, 0) * each; i < share(call, units, 1) * each; i++) {
        const int64_t b = i / pieces, from = i % pieces * PIECE;
        const int64_t positions = step.p - from < PIECE ? step.p - from : PIECE;
        const int64_t at = (b * step.p + from) * step.c;
        if (step.clip == SAMPLE) bound = step.bounds[b];
        if (step.clip == DYNAMIC && from == 0) bound = dynamic_bound(&step, b, size, out);
        const float *normals = step.noise ? step.noise + at : 0, *chosen = 0;
        if (drawn) normals = normals_at(&step, b, (uint32_t)(call->row + 1), from, positions, noise);
        if (step.variance && normals)
            chosen = dense(step.variance + (b * step.p + from) * step.variance_ld, positions, step.c, step.variance_ld,
                           variance);
        const struct predictions one = predictions(&step, b, from, positions, out);
        if (step.further)
            advance_further(&step, one, positions * step.c, bound, normals, chosen, at);
        else
            advance(&step, one, positions * step.c, bound, normals, at);
    }
}
