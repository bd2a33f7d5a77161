/* Chains of elementwise operations with broadcasting, in one pass over memory: an interpreter whose registers are tiles
 * of a few hundred numbers, so that choosing the operation takes little of the time. */
#include "plan.h"
#include "vectors.h"
#include <math.h>

/* Apply f to each lane. f is a constant and inlined, so that the square root becomes one instruction. */
INLINE vf lanes(float (*f)(float), vf x) {
    float values[VL];
    store(values, x);
    for (int i = 0; i < VL; i++) values[i] = f(values[i]);
    return load(values);
}

INLINE vf power(vf x, vf y) {
    for (int i = 0; i < VL; i++) x[i] = powf(x[i], y[i]);
    return x;
}

/* The larger and the smaller, or NaN where either is. */
INLINE vf larger(vf x, vf y) { return pick(x == x, maximum(x, y), x); }
INLINE vf smaller(vf x, vf y) { return pick(x == x, minimum(x, y), x); }

INLINE vf absolute(vf x) { return (vf)((vi)x & 0x7fffffff); }

/* e^x of any x. At the ends of the range 2^n is no float32, or not a normal one, so it is two factors. */
INLINE vf whole_exponential(vf x) {
    vi n;
    const vf p = exponential_parts(between(-104.0f, x, 89.0f), &n) + 1.0f;
    const vi half = n >> 1;
    return p * power_of_two(half) * power_of_two(n - half);
}

/* e^x - 1, of x clamped to -87 .. 88. */
INLINE vf exponential_less_1(vf x) {
    vi n;
    const vf p = exponential_parts(between(-87.0f, x, 88.0f), &n), scale = power_of_two(n);
    return fused(p, scale, scale - 1.0f);
}

/* With t = e^(2x) - 1, t / (t + 2): near 0 it keeps the digits that 1 - 2 / (e^(2x) + 1) loses. */
INLINE vf hyperbolic_tangent(vf x) {
    const vf t = exponential_less_1(2.0f * x);
    return t / (t + 2.0f);
}

/* x tanh(log(1 + e^x)); the tangent is e (e + 2) / (e (e + 2) + 2), e = e^x. */
INLINE vf mish(vf x) {
    const vf e = whole_exponential(minimum(all(20.0f), x)), product = e * (e + 2.0f);
    return pick(x > 20.0f, x, x * (product / (product + 2.0f)));
}

/* The operations in the order of OPERATIONS of pointwise.py, of x, of x and y, or of x, y and z. */
#define OPERATIONS(DO)                                                                                                 \
    DO(ADD, x + y)                                                                                                     \
    DO(SUB, x - y)                                                                                                     \
    DO(MUL, x * y)                                                                                                     \
    DO(DIV, x / y)                                                                                                     \
    DO(MAXIMUM, larger(x, y))                                                                                          \
    DO(MINIMUM, smaller(x, y))                                                                                         \
    DO(POW, power(x, y))                                                                                               \
    DO(GT, pick(x > y, all(1.0f), all(0.0f)))                                                                          \
    DO(GE, pick(x >= y, all(1.0f), all(0.0f)))                                                                         \
    DO(EQ, pick(x == y, all(1.0f), all(0.0f)))                                                                         \
    DO(LEAKY_RELU, pick(x < 0.0f, x * y, x))                                                                           \
    DO(ELU, pick(x < 0.0f, y * exponential_less_1(x), x))                                                              \
    DO(NEG, -x)                                                                                                        \
    DO(ABS, absolute(x))                                                                                               \
    DO(EXP, whole_exponential(x))                                                                                      \
    DO(LOG, lanes(logf, x))                                                                                            \
    DO(SIN, lanes(sinf, x))                                                                                            \
    DO(COS, lanes(cosf, x))                                                                                            \
    DO(TANH, hyperbolic_tangent(x))                                                                                    \
    DO(SIGMOID, 1.0f / (1.0f + whole_exponential(-x)))                                                                 \
    DO(SQRT, lanes(sqrtf, x))                                                                                          \
    DO(RSQRT, 1.0f / lanes(sqrtf, x))                                                                                  \
    DO(RECIPROCAL, 1.0f / x)                                                                                           \
    DO(SQUARE, x * x)                                                                                                  \
    DO(ERF, lanes(erff, x))                                                                                            \
    DO(GELU, activate(x, GELU))                                                                                        \
    DO(GELU_TANH, activate(x, GELU_TANH))                                                                              \
    DO(SILU, activate(x, SILU))                                                                                        \
    DO(RELU, activate(x, RELU))                                                                                        \
    DO(SOFTPLUS, pick(x > 20.0f, x, lanes(log1pf, whole_exponential(x))))                                              \
    DO(MISH, mish(x))                                                                                                  \
    DO(HARDSWISH, x *between(0.0f, x + 3.0f, 6.0f) / 6.0f)                                                             \
    DO(WHERE, pick(x != 0.0f, y, z))

#define NUMBER(name, value) OPERATION_##name,
enum operation { OPERATIONS(NUMBER) };

/* What an operation reads: vectors `step` floats apart, 0 where all are the same. */
struct source {
    const float *at;
    int step;
};

static void apply(int operation, int n, struct source a, struct source b, struct source c, float *to) {
    switch (operation) {
#define LOOP(name, value)                                                                                              \
    case OPERATION_##name:                                                                                             \
        for (int i = 0; i < n; i += VL, a.at += a.step, b.at += b.step, c.at += c.step) {                              \
            const vf x = load(a.at), y __attribute__((unused)) = load(b.at), z __attribute__((unused)) = load(c.at);   \
            store(to + i, value);                                                                                      \
        }                                                                                                              \
        break;
        OPERATIONS(LOOP)
#undef LOOP
    }
}

/* Where a tile lies: a step down to the next row, and a step across to the next column. */
struct tile {
    float *at;
    int64_t down, across;
};

INLINE void copy_tile_rows(int rows, int columns, struct tile from, struct tile to) {
    for (int i = 0; i < rows; i++, from.at += from.down, to.at += to.down)
        for (int j = 0; j < columns; j += VL) {
            const int at = vector_at(j, columns), wide = vector_of(columns);
            store_some(to.at + at, load_some(from.at + at, wide), wide);
        }
}

static void copy_tile(int rows, int columns, struct tile from, struct tile to) {
    if (from.across == 1 && to.across == 1) {
        if (from.down == columns && to.down == columns) columns *= rows, rows = 1;
        copy_tile_rows(rows, columns, from, to);
    } else if (from.across == 0 && to.across == 1) {
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < columns; j++) to.at[i * to.down + j] = from.at[i * from.down];
    } else { /* one by one, a column after the other, so that the rows of a transposed tile are read in order */
        for (int j = 0; j < columns; j++)
            for (int i = 0; i < rows; i++)
                to.at[i * to.down + j * to.across] = from.at[i * from.down + j * from.across];
    }
}

/* Whether a tile's numbers lie one after the other and fill whole vectors, so that operations may use them in place. */
static int in_order(int rows, int columns, struct tile where) {
    return where.across == 1 && (rows == 1 || where.down == columns) && rows * columns % VL == 0;
}

/* Have the source be a tile where it lies, or a copy of it, which is one vector where all of the tile is one number. */
static void fetch_tile(int rows, int columns, struct tile where, float *slot, struct source *source) {
    const int n = rows * columns;
    *source = (struct source){slot, VL};
    if (in_order(rows, columns, where)) {
        source->at = where.at;
    } else if ((columns == 1 || !where.across) && (rows == 1 || !where.down)) {
        store(slot, all(*where.at));
        source->step = 0;
    } else {
        if (n % VL) store(slot + n / VL * VL, all(0)); /* what fills the last vector is computed with, but not stored */
        copy_tile(rows, columns, where, (struct tile){slot, columns, 1});
    }
}

/* Copy a tile; if it is transposed, by way of a slot, so that the result is written in whole rows. */
static void move_tile(int rows, int columns, struct tile from, struct tile to, float *slot) {
    if (from.across > 1 && to.across == 1) {
        const struct tile between = {slot, columns, 1};
        copy_tile(rows, columns, from, between);
        from = between;
    }
    copy_tile(rows, columns, from, to);
}

/* The numbers of a call, as pointwise.py lays them out. */
struct chain {
    int dims, inputs, constants, registers, steps;
    const union number *size, *tile, *stride, *constant, *step; /* strides: dims of each input, then of the result */
};

static struct chain parsed(const union number *number) {
    struct chain c = {.dims = (int)number[0].i,
                      .inputs = (int)number[1].i,
                      .constants = (int)number[2].i,
                      .registers = (int)number[3].i,
                      .steps = (int)number[4].i};
    c.size = number + 5;
    c.tile = c.size + c.dims;
    c.stride = c.tile + c.dims;
    c.constant = c.stride + (c.inputs + 1) * c.dims;
    c.step = c.constant + c.constants;
    return c;
}

static int slot_size(const struct chain *c) {
    return rounded_up((int)(c->tile[c->dims - 2].i * c->tile[c->dims - 1].i));
}

int64_t pointwise_space(const union number *number) {
    const struct chain c = parsed(number);
    return c.constants * VL + (int64_t)(c.inputs + c.registers + 1) * slot_size(&c);
}

/* At least what pointwise.py lets be: 10 inputs, 96 constants, 32 registers; and as many numbers of a step as it has. */
enum { DIMS = 6, INPUTS = 10, SOURCES = 144, FIELDS = 5 };

static struct tile tile_of(const struct chain *c, int operand, const int64_t *index, float *at) {
    const union number *stride = c->stride + operand * c->dims;
    for (int k = 0; k < c->dims; k++) at += index[k] * c->tile[k].i * stride[k].i;
    return (struct tile){at, stride[c->dims - 2].i, stride[c->dims - 1].i};
}

/* Rows or columns of the tile of that index in dimension k: fewer at the end. */
static int tile_extent(const struct chain *c, int k, int64_t index) {
    const int64_t left = c->size[k].i - index * c->tile[k].i;
    return (int)(left < c->tile[k].i ? left : c->tile[k].i);
}

/* y = the last step's value, or the one input where there is no step, tile by tile.
 *
 * Operands: the inputs, then y. Numbers: how many dims, inputs, constants, registers and steps; the size of each dim,
 * at least two; how much of it a tile covers, 1 but for the last two; strides of each input and of y, in elements; the
 * constants; for each step the operation, the register for its value (or -1: y), and three numbers of what it reads:
 * inputs are numbered first, then constants, then registers. */
void pointwise(const struct call *call) {
    const struct chain c = parsed(call->number);
    const int slot = slot_size(&c), last = c.dims - 1;
    float *constants = call->space, *slots = constants + c.constants * VL, *registers = slots + c.inputs * slot,
          *result = registers + c.registers * slot;
    struct source sources[SOURCES];
    for (int i = 0; i < c.constants; i++) {
        store(constants + i * VL, all((float)c.constant[i].r));
        sources[c.inputs + i] = (struct source){constants + i * VL, 0};
    }
    for (int i = 0; i < c.registers; i++)
        sources[c.inputs + c.constants + i] = (struct source){registers + i * slot, VL};

    int64_t count[DIMS], index[DIMS], tiles = 1;
    for (int k = 0; k < c.dims; k++) tiles *= count[k] = (c.size[k].i + c.tile[k].i - 1) / c.tile[k].i;
    int64_t left = share(call, tiles, 0);
    const int64_t many = share(call, tiles, 1) - left;
    for (int k = last; k >= 0 && many; left /= count[k--]) index[k] = left % count[k];

    const float *before[INPUTS] = {0};
    int high = 0, wide = 0; /* of the tile before */
    for (int64_t t = 0; t < many; t++) {
        const int rows = tile_extent(&c, last - 1, index[last - 1]), columns = tile_extent(&c, last, index[last]);
        const struct tile y = tile_of(&c, c.inputs, index, call->at[c.inputs]);
        if (c.steps) {
            float *to = in_order(rows, columns, y) ? y.at : result;
            const int same = rows == high && columns == wide;
            for (int i = 0; i < c.inputs; i++) {
                const struct tile x = tile_of(&c, i, index, call->at[i]);
                if (!same || x.at != before[i]) fetch_tile(rows, columns, x, slots + i * slot, sources + i);
                before[i] = x.at; /* what is broadcast, such as a bias, is often the next tile's too */
            }
            high = rows, wide = columns;
            for (int s = 0; s < c.steps; s++) {
                const union number *step = c.step + FIELDS * s;
                apply((int)step[0].i, rows * columns, sources[step[2].i], sources[step[3].i], sources[step[4].i],
                      step[1].i < 0 ? to : registers + step[1].i * slot);
            }
            if (to == result) copy_tile(rows, columns, (struct tile){result, columns, 1}, y);
        } else
            move_tile(rows, columns, tile_of(&c, 0, index, call->at[0]), y, result);
        for (int k = last; k >= 0 && ++index[k] == count[k]; k--) index[k] = 0;
    }
}
