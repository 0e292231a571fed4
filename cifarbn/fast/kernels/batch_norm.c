/* The passes over memory of batch normalisation and of what may follow it, for bf16 values in rows of channels.

   A row is one position of one picture. Threads share out blocks of rows; sums are made block by block, one line of
   `sums` each, so that they do not depend on the number of threads. Everything is rounded to bf16 where a layer of its
   own would have rounded it. */

#include <math.h>
#include <string.h>

#include "bf16.h"

#define BLOCK 128

enum { NOTHING, RELU, SHORTCUT_RELU }; /* what follows the normalisation */

INLINE float relu(float value) { return value <= 0 ? 0 : value; }

/* A loop over the blocks, with the first and the last value of each. */
#define FOR_EACH_BLOCK                                                                  \
    _Pragma("omp parallel for schedule(static)")                                        \
    for (long block = 0; block < (rows + BLOCK - 1) / BLOCK; block++)

#define FIRST (block * BLOCK * channels)
#define LAST ((block + 1) * BLOCK < rows ? (block + 1) * BLOCK * channels : rows * channels)

/* A function once for each value of `next`, known when it is compiled, so that no loop has to ask. */
#define SPECIALIZED(function, ...)                                                      \
    do {                                                                                \
        if (next == NOTHING) function(NOTHING, __VA_ARGS__);                            \
        if (next == RELU) function(RELU, __VA_ARGS__);                                  \
        if (next == SHORTCUT_RELU) function(SHORTCUT_RELU, __VA_ARGS__);                \
    } while (0)

/* sums[block] = each channel's sum of x, then of its square. A block is small enough for the squares, of 16 digits, to
   add up exactly where they are of one size, so that a large mean does not drown the variance. */
void moments(long rows, long channels, const bf16 *x, float *sums) {
    FOR_EACH_BLOCK {
        float *sum = sums + 2 * channels * block, *square = sum + channels;
        memset(sum, 0, 2 * channels * sizeof(float));
        for (long i = FIRST; i < LAST; i += channels)
#pragma omp simd
            for (long c = 0; c < channels; c++) {
                float value = wide(x[i + c]);
                sum[c] += value;
                square[c] = __builtin_fmaf(value, value, square[c]);
            }
    }
}

/* Where each channel's values are in `statistics`, (4, channels). */
#define MEAN statistics
#define VARIANCE (statistics + channels)
#define SCALE (statistics + 2 * channels)
#define SHIFT (statistics + 3 * channels)

/* The batch's statistics of each channel, from its sum of x and of the square; y = x * scale + shift. */
void batch_statistics(long rows, long channels, const double *sum, const float *weight, const float *bias, double eps,
                      float *statistics, double *inverse) {
    for (long c = 0; c < channels; c++) {
        double mean = sum[c] / rows, variance = sum[channels + c] / rows - mean * mean;
        if (variance < 0) variance = 0;
        inverse[c] = 1 / sqrt(variance + eps);
        MEAN[c] = mean;
        VARIANCE[c] = variance;
        SCALE[c] = weight[c] * inverse[c];
        SHIFT[c] = bias[c] - mean * weight[c] * inverse[c];
    }
}

INLINE void normalize_rows(int next, long first, long last, long channels, const bf16 *x, const bf16 *shortcut,
                           const float *scale, const float *shift, bf16 *y) {
    for (long i = first; i < last; i += channels)
#pragma omp simd
        for (long c = 0; c < channels; c++) {
            float value = __builtin_fmaf(wide(x[i + c]), scale[c], shift[c]);
            if (next == SHORTCUT_RELU) value = wide(narrow(value)) + wide(shortcut[i + c]);
            y[i + c] = narrow(next == NOTHING ? value : relu(value));
        }
}

/* y = x * scale + shift, plus the shortcut and through the ReLU where those follow */
void normalize(long next, long rows, long channels, const bf16 *x, const bf16 *shortcut, const float *statistics,
               bf16 *y) {
    FOR_EACH_BLOCK SPECIALIZED(normalize_rows, FIRST, LAST, channels, x, shortcut, SCALE, SHIFT, y);
}

/* The gradient that reaches the normalisation, given that of y. */
INLINE float reaching(int next, bf16 grad_output, bf16 x, float scale, float shift) {
    return next == RELU && __builtin_fmaf(wide(x), scale, shift) <= 0 ? 0 : wide(grad_output);
}

INLINE void sum_rows(int next, long first, long last, long channels, const bf16 *grad_output, const bf16 *x, const bf16 *y,
                     const float *mean, const float *scale, const float *shift, bf16 *grad_residual, float *sum) {
    float *product = sum + channels;
    memset(sum, 0, 2 * channels * sizeof(float));
    for (long i = first; i < last; i += channels)
#pragma omp simd
        for (long c = 0; c < channels; c++) {
            float gradient = reaching(next, grad_output[i + c], x[i + c], scale[c], shift[c]);
            if (next == SHORTCUT_RELU) {
                gradient = wide(y[i + c]) <= 0 ? 0 : gradient;
                grad_residual[i + c] = narrow(gradient);
            }
            sum[c] += gradient;
            product[c] = __builtin_fmaf(gradient, wide(x[i + c]) - mean[c], product[c]);
        }
}

/* sums[block] = each channel's sum of the gradient that reaches the normalisation, then of that times x - mean.
   Where a shortcut was added, y says what passed the ReLU, and the same gradient is also the shortcut's. */
void gradient_sums(long next, long rows, long channels, const bf16 *grad_output, const bf16 *x, const bf16 *y,
                   const float *statistics, bf16 *grad_residual, float *sums) {
    FOR_EACH_BLOCK SPECIALIZED(sum_rows, FIRST, LAST, channels, grad_output, x, y, MEAN, SCALE, SHIFT, grad_residual,
                               sums + 2 * channels * block);
}

/* The gradients of weight and bias from both sums; and, with the mean of the gradient g that reaches the normalisation
   and that of g * (x - mean), x_scale and offset of
   weight * inverse * (g - mean(g) - (x - mean) * inverse^2 * mean(g * (x - mean))) = g * scale + x * x_scale + offset */
void gradient_coefficients(long rows, long channels, const double *sum, const float *statistics, const double *inverse,
                           float *grad_weight, float *grad_bias, float *x_scale, float *offset) {
    for (long c = 0; c < channels; c++) {
        double product = sum[channels + c] * inverse[c], by_x = -SCALE[c] * inverse[c] * product / rows;
        grad_weight[c] = product;
        grad_bias[c] = sum[c];
        x_scale[c] = by_x;
        offset[c] = -SCALE[c] * sum[c] / rows - by_x * MEAN[c];
    }
}

INLINE void gradient_rows(int next, long first, long last, long channels, const bf16 *grad_output, const bf16 *x,
                          const float *scale, const float *shift, const float *x_scale, const float *offset, bf16 *grad_input) {
    for (long i = first; i < last; i += channels)
#pragma omp simd
        for (long c = 0; c < channels; c++) {
            float gradient = reaching(next, grad_output[i + c], x[i + c], scale[c], shift[c]);
            float rest = __builtin_fmaf(wide(x[i + c]), x_scale[c], offset[c]);
            grad_input[i + c] = narrow(__builtin_fmaf(gradient, scale[c], rest));
        }
}

/* grad_input = the gradient that reaches the normalisation * scale + x * x_scale + offset; after a shortcut, grad_output is that
   gradient already */
void gradient(long next, long rows, long channels, const bf16 *grad_output, const bf16 *x, const float *statistics,
              const float *x_scale, const float *offset, bf16 *grad_input) {
    FOR_EACH_BLOCK SPECIALIZED(gradient_rows, FIRST, LAST, channels, grad_output, x, SCALE, SHIFT, x_scale, offset, grad_input);
}
