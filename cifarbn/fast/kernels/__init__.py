"""C for what torch does slowly on a CPU in bf16; compiled when it is first needed, and called through `ops`."""
