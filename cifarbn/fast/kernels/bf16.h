/* bf16, the upper half of a float. */

#include <stdint.h>

typedef uint16_t bf16;

#define INLINE static inline __attribute__((always_inline))

INLINE float wide(bf16 value) {
    union { uint32_t bits; float number; } it = {.bits = (uint32_t)value << 16};
    return it.number;
}

INLINE bf16 narrow(float value) { /* to the nearest, ties to even; NaN stays NaN */
    union { float number; uint32_t bits; } it = {.number = value};
    uint32_t rounded = (it.bits + 0x7fff + ((it.bits >> 16) & 1)) >> 16;
    return value != value ? 0x7fc0 : rounded;
}
