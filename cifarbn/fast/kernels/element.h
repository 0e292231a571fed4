/* The values of feature maps: float if FLOAT is defined, else bf16, the upper half of a float. */

#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))

#ifdef FLOAT

typedef float element;

INLINE float wide(element value) { return value; }
INLINE element narrow(float value) { return value; }

#else

typedef uint16_t element;

INLINE float wide(element value) {
    union { uint32_t bits; float number; } it = {.bits = (uint32_t)value << 16};
    return it.number;
}

INLINE element narrow(float value) { /* to the nearest, ties to even; NaN stays NaN */
    union { float number; uint32_t bits; } it = {.number = value};
    uint32_t rounded = (it.bits + 0x7fff + ((it.bits >> 16) & 1)) >> 16;
    return value != value ? 0x7fc0 : rounded;
}

#endif

/* a * b + c, rounded once if the machine has such an instruction; without, fmaf would be a slow function call. */
INLINE float multiply_add(float a, float b, float c) {
#if defined(__FMA__) || defined(__FP_FAST_FMAF)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}
