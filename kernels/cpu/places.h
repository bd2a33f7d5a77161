/* Where the elements of a view lie. */
#pragma once
#include "plan.h"

/* How many elements these dimensions have. */
static inline int64_t elements(const union number *size, int dims) {
    int64_t count = 1;
    while (dims--) count *= size[dims].i;
    return count;
}

/* How far the index-th element lies from the first, the last dimension moving fastest. */
static inline int64_t element_offset(int64_t index, const union number *size, const union number *stride, int dims) {
    int64_t far = 0;
    while (index && dims--) {
        const int64_t outer = index < size[dims].i ? 0 : index / size[dims].i; /* a division takes long */
        far += (index - outer * size[dims].i) * stride[dims].i;
        index = outer;
    }
    return far;
}
