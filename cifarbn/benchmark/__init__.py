"""Benchmarks of the parts of a run, each measured next to the usual alternative on the same machine.

`python -m cifarbn.benchmark data|step|kernels|loop|probe|threads|sweep|speedrun|kills|checks|gpu [--json FILE]`.
"""
