/* 2x2 max pooling with stride 2, for values in rows of channels, and its gradient. */

#include "element.h"

/* The addresses of the first channel of the window's four pixels, for the output's `image`, `row` and `column`. */
#define CORNERS(x)                                                           \
    x + ((image * height + 2 * row) * width + 2 * column) * channels,        \
    x + ((image * height + 2 * row) * width + 2 * column + 1) * channels,    \
    x + ((image * height + 2 * row + 1) * width + 2 * column) * channels,    \
    x + ((image * height + 2 * row + 1) * width + 2 * column + 1) * channels

/* y = the largest value of each window; which = its index, 0 to 3. As in torch, the first of equal values or the last
   NaN. */
void max_pool(long images, long height, long width, long channels, const element *x, element *y, uint16_t *which) {
    long rows = height / 2, columns = width / 2;
#pragma omp parallel for collapse(2) schedule(static)
    for (long image = 0; image < images; image++)
        for (long row = 0; row < rows; row++)
            for (long column = 0; column < columns; column++) {
                const element *corners[4] = {CORNERS(x)};
                long window = ((image * rows + row) * columns + column) * channels;
#pragma omp simd
                for (long c = 0; c < channels; c++) {
                    float best = wide(corners[0][c]);
                    uint32_t number = 0;
                    for (int corner = 1; corner < 4; corner++) {
                        float value = wide(corners[corner][c]);
                        int better = value > best || value != value;
                        best = better ? value : best;
                        number = better ? corner : number;
                    }
                    y[window + c] = narrow(best);
                    which[window + c] = number;
                }
            }
}

/* grad_input = the gradient of y where x was the largest of its window, else 0. Rows and columns outside all windows are
   not written. */
void max_pool_gradient(long images, long height, long width, long channels, const element *grad_output,
                       const uint16_t *which, element *grad_input) {
    long rows = height / 2, columns = width / 2;
#pragma omp parallel for collapse(2) schedule(static)
    for (long image = 0; image < images; image++)
        for (long row = 0; row < rows; row++)
            for (long column = 0; column < columns; column++) {
                element *corners[4] = {CORNERS(grad_input)};
                long window = ((image * rows + row) * columns + column) * channels;
                for (int corner = 0; corner < 4; corner++)
#pragma omp simd
                    for (long c = 0; c < channels; c++)
                        corners[corner][c] = which[window + c] == corner ? grad_output[window + c] : 0;
            }
}
