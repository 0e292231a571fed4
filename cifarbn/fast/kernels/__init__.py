"""C kernels for operations that are slow in torch in bf16 on a CPU. Compiled on first use; called through `ops`."""
