"""Import and compile in advance what runs load on demand, so that all forked runs execute the same code."""

import cifarbn.models.external
import cifarbn.models.normalization
import cifarbn.optimizers  # noqa: F401
from cifarbn.fast.kernels.library import TYPES, why_unavailable

for dtype in TYPES:
    why_unavailable(dtype)  # compiles the kernels
