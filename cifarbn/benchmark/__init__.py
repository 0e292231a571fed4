"""How fast the parts are, each measured side by side, in one process tree, with what one would use without it.

`python -m cifarbn.benchmark data|step|loop|probe|threads|speedrun [--json FILE]`.
"""
