"""Tests that need a GPU; `python -m cifarbn.benchmark checks` runs the same checks without pytest."""

import pytest
import torch

from cifarbn.benchmark.checks import all_checks

CHECKS = dict(all_checks())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", CHECKS)
def test_check(name, tmp_path):
    CHECKS[name](tmp_path)
