/* The input patches of all output positions of a convolution. */

#include <string.h>

#include "element.h"

INLINE long at_least(long least, long value) { return value < least ? least : value; }
INLINE long at_most(long most, long value) { return value > most ? most : value; }

/* x: (images, height, width, channels) -> patches: (images, out_height, out_width, rows, columns, channels), with zeros
   outside the image */
void patches(long images, long height, long width, long channels, long out_height, long out_width, long rows,
             long columns, long row_stride, long column_stride, long above, long left, const element *x,
             element *patches) {
    long line = columns * channels;
#pragma omp parallel for collapse(2) schedule(static)
    for (long image = 0; image < images; image++)
        for (long out_row = 0; out_row < out_height; out_row++)
            for (long out_column = 0; out_column < out_width; out_column++) {
                long start = out_column * column_stride - left;
                long first = at_most(columns, at_least(0, -start)); /* the patch's columns first to last - 1 are inside the image */
                long last = at_least(first, at_most(columns, width - start));
                element *to = patches + ((image * out_height + out_row) * out_width + out_column) * rows * line;
                for (long row = 0; row < rows; row++, to += line) {
                    long y = out_row * row_stride - above + row;
                    if (y < 0 || y >= height) {
                        memset(to, 0, line * sizeof(element));
                        continue;
                    }
                    memset(to, 0, first * channels * sizeof(element));
                    memcpy(to + first * channels, x + ((image * height + y) * width + start + first) * channels,
                           (last - first) * channels * sizeof(element));
                    memset(to + last * channels, 0, (columns - last) * channels * sizeof(element));
                }
            }
}
