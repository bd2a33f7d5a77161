/* Standard normals, each a function of (seed, draw, sample, element) alone. */
#include "philox.h"

int64_t normals_space(const union number *number) { return 0; }

/* Operands: key, two int64: the seed and the first sample; the result (samples, elements). Numbers: samples, elements,
 * draw, how many samples after the key's the result begins. */
void normals(const struct call *call) {
    const union number *number = call->number;
    const int64_t samples = number[0].i, elements = number[1].i, blocks = (elements + 3) / 4;
    const uint32_t draw = (uint32_t)number[2].i;
    const int64_t last = share(call, samples * blocks, 1);
    for (int64_t block = share(call, samples * blocks, 0); block < last;) {
        const int64_t sample = block / blocks, from = block % blocks * 4;
        const int64_t next = (sample + 1) * blocks < last ? (sample + 1) * blocks : last;
        const int64_t end = from + (next - block) * 4, to = end < elements ? end : elements;
        normals_of(call->at[0], number[3].i + sample, draw, from, to, call->at[1] + sample * elements + from);
        block = next;
    }
}
