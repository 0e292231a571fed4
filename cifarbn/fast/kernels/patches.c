/* What each position of a convolution's output is computed from, copied side by side. */

#include <string.h>

#include "bf16.h"

INLINE long at_least(long least, long value) { return value < least ? least : value; }
INLINE long at_most(long most, long value) { return value > most ? most : value; }

/* x: pictures by height by width by channels -> patches: pictures by out_height by out_width by rows by columns by
   channels, with zeros where a patch leaves the picture */
void patches(long pictures, long height, long width, long channels, long out_height, long out_width, long rows,
             long columns, long row_stride, long column_stride, long above, long left, const bf16 *x, bf16 *patches) {
    long line = columns * channels;
#pragma omp parallel for collapse(2) schedule(static)
    for (long picture = 0; picture < pictures; picture++)
        for (long out_row = 0; out_row < out_height; out_row++)
            for (long out_column = 0; out_column < out_width; out_column++) {
                long start = out_column * column_stride - left;
                long first = at_most(columns, at_least(0, -start)); /* of the patch's columns inside the picture */
                long last = at_least(first, at_most(columns, width - start));
                bf16 *to = patches + ((picture * out_height + out_row) * out_width + out_column) * rows * line;
                for (long row = 0; row < rows; row++, to += line) {
                    long y = out_row * row_stride - above + row;
                    if (y < 0 || y >= height) {
                        memset(to, 0, line * sizeof(bf16));
                        continue;
                    }
                    memset(to, 0, first * channels * sizeof(bf16));
                    memcpy(to + first * channels, x + ((picture * height + y) * width + start + first) * channels,
                           (last - first) * channels * sizeof(bf16));
                    memset(to + last * channels, 0, (columns - last) * channels * sizeof(bf16));
                }
            }
}
