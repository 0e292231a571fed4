/* Batch normalisation, optionally fused with a residual add and ReLU, for values in rows of channels.

   A row is one position of one image. Blocks of rows are distributed over threads; each block has its own line of
   `sums`, so results do not depend on the number of threads. In bf16, values are rounded wherever separate layers would
   round them. */

#include <math.h>
#include <string.h>

#include "element.h"

#define BLOCK 128

enum { NOTHING, RELU, RESIDUAL_RELU }; /* the operations that follow the normalisation */

INLINE float relu(float value) { return value <= 0 ? 0 : value; }

/* A parallel loop over the blocks; FIRST and LAST are the indices of a block's values. */
#define FOR_EACH_BLOCK                                                                  \
    _Pragma("omp parallel for schedule(static)")                                        \
    for (long block = 0; block < (rows + BLOCK - 1) / BLOCK; block++)

#define FIRST (block * BLOCK * channels)
#define LAST ((block + 1) * BLOCK < rows ? (block + 1) * BLOCK * channels : rows * channels)

/* Call a function with a constant `next`, so that it is compiled once for each value, without a branch in its loops. */
#define SPECIALIZED(function, ...)                                                      \
    do {                                                                                \
        if (next == NOTHING) function(NOTHING, __VA_ARGS__);                            \
        if (next == RELU) function(RELU, __VA_ARGS__);                                  \
        if (next == RESIDUAL_RELU) function(RESIDUAL_RELU, __VA_ARGS__);                \
    } while (0)

/* sums[block] = sum of x - pivot, then sum of (x - pivot)^2, of each channel. With a pivot among the values of x, a
   large mean does not cancel the variance. In bf16 it does not with 0 either: squares have 16 bits, so the sum of a
   block's squares of similar size is exact in float. */
void moments(long rows, long channels, const element *x, const float *pivot, float *sums) {
    FOR_EACH_BLOCK {
        float *sum = sums + 2 * channels * block, *square = sum + channels;
        memset(sum, 0, 2 * channels * sizeof(float));
        for (long i = FIRST; i < LAST; i += channels)
#pragma omp simd
            for (long c = 0; c < channels; c++) {
                float value = wide(x[i + c]) - pivot[c];
                sum[c] += value;
                square[c] = multiply_add(value, value, square[c]);
            }
    }
}

/* The rows of `statistics`, (4, channels). */
#define MEAN statistics
#define VARIANCE (statistics + channels)
#define SCALE (statistics + 2 * channels)
#define SHIFT (statistics + 3 * channels)

/* Compute each channel's statistics from its sums, see `moments`, such that y = x * scale + shift. */
void batch_statistics(long rows, long channels, const double *sum, const float *pivot, const float *weight,
                      const float *bias, double eps, float *statistics, double *inverse) {
    for (long c = 0; c < channels; c++) {
        double difference = sum[c] / rows, mean = pivot[c] + difference;
        double variance = sum[channels + c] / rows - difference * difference;
        if (variance < 0) variance = 0;
        inverse[c] = 1 / sqrt(variance + eps);
        MEAN[c] = mean;
        VARIANCE[c] = variance;
        SCALE[c] = weight[c] * inverse[c];
        SHIFT[c] = bias[c] - mean * weight[c] * inverse[c];
    }
}

INLINE void normalize_rows(int next, long first, long last, long channels, const element *x, const element *residual,
                           const float *scale, const float *shift, element *y) {
    for (long i = first; i < last; i += channels)
#pragma omp simd
        for (long c = 0; c < channels; c++) {
            float value = multiply_add(wide(x[i + c]), scale[c], shift[c]);
            if (next == RESIDUAL_RELU) value = wide(narrow(value)) + wide(residual[i + c]);
            y[i + c] = narrow(next == NOTHING ? value : relu(value));
        }
}

/* y = x * scale + shift, followed by the residual add and the ReLU if requested */
void normalize(long next, long rows, long channels, const element *x, const element *residual, const float *statistics,
               element *y) {
    FOR_EACH_BLOCK SPECIALIZED(normalize_rows, FIRST, LAST, channels, x, residual, SCALE, SHIFT, y);
}

/* The gradient of the normalisation's output, given that of y. */
INLINE float reaching(int next, element grad_output, element x, float scale, float shift) {
    return next == RELU && multiply_add(wide(x), scale, shift) <= 0 ? 0 : wide(grad_output);
}

INLINE void sum_rows(int next, long first, long last, long channels, const element *grad_output, const element *x,
                     const element *y, const float *mean, const float *scale, const float *shift,
                     element *grad_residual, float *sum) {
    float *product = sum + channels;
    memset(sum, 0, 2 * channels * sizeof(float));
    for (long i = first; i < last; i += channels)
#pragma omp simd
        for (long c = 0; c < channels; c++) {
            float gradient = reaching(next, grad_output[i + c], x[i + c], scale[c], shift[c]);
            if (next == RESIDUAL_RELU) {
                gradient = wide(y[i + c]) <= 0 ? 0 : gradient;
                grad_residual[i + c] = narrow(gradient);
            }
            sum[c] += gradient;
            product[c] = multiply_add(gradient, wide(x[i + c]) - mean[c], product[c]);
        }
}

/* sums[block] = sum of g, then sum of g * (x - mean), of each channel, with g the gradient of the normalisation's output.
   With a residual, the ReLU's mask is y > 0, and g is also the gradient of the residual. */
void gradient_sums(long next, long rows, long channels, const element *grad_output, const element *x, const element *y,
                   const float *statistics, element *grad_residual, float *sums) {
    FOR_EACH_BLOCK SPECIALIZED(sum_rows, FIRST, LAST, channels, grad_output, x, y, MEAN, SCALE, SHIFT, grad_residual,
                               sums + 2 * channels * block);
}

/* Compute the gradients of weight and bias from both sums, and the coefficients x_scale and offset of the gradient of x,
   weight * inverse * (g - mean(g) - (x - mean) * inverse^2 * mean(g * (x - mean)))
   = g * scale + (x - mean) * x_scale + offset, with g the gradient of the normalisation's output. */
void gradient_coefficients(long rows, long channels, const double *sum, const float *statistics, const double *inverse,
                           float *grad_weight, float *grad_bias, float *x_scale, float *offset) {
    for (long c = 0; c < channels; c++) {
        double product = sum[channels + c] * inverse[c];
        grad_weight[c] = product;
        grad_bias[c] = sum[c];
        x_scale[c] = -SCALE[c] * inverse[c] * product / rows;
        offset[c] = -SCALE[c] * sum[c] / rows;
    }
}

INLINE void gradient_rows(int next, long first, long last, long channels, const element *grad_output, const element *x,
                          const float *mean, const float *scale, const float *shift, const float *x_scale,
                          const float *offset, element *grad_input) {
    for (long i = first; i < last; i += channels)
#pragma omp simd
        for (long c = 0; c < channels; c++) {
            float gradient = reaching(next, grad_output[i + c], x[i + c], scale[c], shift[c]);
            float rest = multiply_add(wide(x[i + c]) - mean[c], x_scale[c], offset[c]);
            grad_input[i + c] = narrow(multiply_add(gradient, scale[c], rest));
        }
}

/* grad_input = g * scale + (x - mean) * x_scale + offset, with g the gradient of the normalisation's output. With a
   residual, grad_output must be g already (see gradient_sums). */
void gradient(long next, long rows, long channels, const element *grad_output, const element *x,
              const float *statistics, const float *x_scale, const float *offset, element *grad_input) {
    FOR_EACH_BLOCK SPECIALIZED(gradient_rows, FIRST, LAST, channels, grad_output, x, MEAN, SCALE, SHIFT, x_scale,
                               offset, grad_input);
}
