/* What a kernel of the plan is given. A plan is a list of instructions, each one kernel's call; see plan.c. */
#pragma once
#include <stdint.h>

enum { OPERANDS = 12 };

#define EXPORTED __attribute__((visibility("default"))) /* what Python calls */

/* A size, or a real number such as a norm's eps. */
union number {
    int64_t i;
    double r;
};

struct call {
    float *const *at;           /* OPERANDS addresses, 0 for what is not there */
    const union number *number; /* in the kernel's order */
    float *space;               /* as many floats as the kernel's space function says; nothing is in them */
    int64_t row;                /* of the sampler's table */
    int part, parts;            /* the share of the result that is to be computed */
};

/* The part's share of 0 .. count - 1 begins here; the next part's share begins where it ends. */
static inline int64_t share(const struct call *call, int64_t count, int next) {
    return count * (call->part + next) / call->parts;
}

/* All kernels, and how many floats of space a part needs for these numbers. A result's bits depend on neither the parts
 * nor the other pictures. */
#define KERNELS(DO)                                                                                                    \
    DO(attention_context)                                                                                              \
    DO(attention_output)                                                                                               \
    DO(average_pool)                                                                                                   \
    DO(convolution)                                                                                                    \
    DO(denoise_step)                                                                                                   \
    DO(depthwise)                                                                                                      \
    DO(depthwise_gradient)                                                                                             \
    DO(linear)                                                                                                         \
    DO(matmul)                                                                                                         \
    DO(max_pool)                                                                                                       \
    DO(norm_statistics)                                                                                                \
    DO(normals)                                                                                                        \
    DO(pointwise)                                                                                                      \
    DO(position_norm)                                                                                                  \
    DO(reduce)                                                                                                         \
    DO(scale_shift)                                                                                                    \
    DO(softmax)                                                                                                        \
    DO(softmax_attention)                                                                                              \
    DO(winograd)

#define DECLARED(name)                                                                                                 \
    void name(const struct call *);                                                                                    \
    int64_t name##_space(const union number *);
KERNELS(DECLARED)
#undef DECLARED
