"""What a run only does when needed, done once by the server of parallel runs, so that all execute the same code."""

import cifarbn.models.external
import cifarbn.models.normalization
import cifarbn.optimizers  # noqa: F401
from cifarbn.fast.kernels.library import TYPES, why_unavailable

for dtype in TYPES:
    why_unavailable(dtype)  # compiles the kernels
