/* The largest or the mean of the numbers that a window sees, NHWC. */
#include "plan.h"
#include "window.h"

/* The largest is NaN where one is. Padding is not seen. The mean's divisor is the number of taps within the picture, or
 * of all taps where `padded`. */
INLINE void pool(const struct call *call, const int largest, int padded) {
    const struct window s = window_of(call->number);
    const int64_t outputs = s.n * s.down.outputs * s.across.outputs, last = share(call, outputs, 1);
    struct place p = place_of(share(call, outputs, 0), &s);
    for (int64_t i = share(call, outputs, 0); i < last; i++, p = after(p, &s)) {
        const int64_t top = p.row * s.down.stride - s.down.before, left = p.column * s.across.stride - s.across.before;
        const int64_t highest = first_tap(s.down, top), lowest = last_tap(s.down, top);
        const int64_t begin = first_tap(s.across, left), end = last_tap(s.across, left);
        const int64_t taps = padded ? s.down.taps * s.across.taps : (lowest - highest) * (end - begin);
        const float *x = call->at[0] + p.picture * s.down.size * s.across.size * s.ld;
        float *y = call->at[1] + offset(s.y, p);
        for (int j = 0; j < s.c; j += VL) {
            const int at = vector_at(j, s.c), wide = vector_of(s.c);
            vf held = all(largest ? -__builtin_inff() : 0);
            for (int64_t r = highest; r < lowest; r++)
                for (int64_t q = begin; q < end; q++) {
                    const int64_t row = top + r * s.down.dilation, column = left + q * s.across.dilation;
                    const vf v = load_some(x + (row * s.across.size + column) * s.ld + at, wide);
                    held = largest ? pick((v > held) | (v != v), v, held) : held + v;
                }
            store_some(y + at, largest ? held : held / (float)taps, wide);
        }
    }
}

int64_t max_pool_space(const union number *number) { return 0; }

/* Operands: x, y. Numbers: those of window_of. */
void max_pool(const struct call *call) { pool(call, 1, 0); }

int64_t average_pool_space(const union number *number) { return 0; }

/* Operands: x, y. Numbers: those of window_of; whether padding counts as zeros. */
void average_pool(const struct call *call) { pool(call, 0, (int)call->number[WINDOW].i); }
