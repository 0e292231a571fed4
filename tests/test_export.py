"""`cifarbn.load`: a plain torch module that torch.export and ONNX can export."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from in_process import make_run
from PIL import Image
from processes import ENVIRONMENT
from torch import nn

import cifarbn
from cifarbn.errors import UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "run"
    make_run(folder, "epochs=1", "model=resnet18", "model.width=4")
    return folder


@pytest.fixture(scope="module")
def trained(run):
    return cifarbn.load(run)


IMAGES = torch.randint(256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_the_model_consists_of_torchs_own_layers_with_the_weights_of_the_run(run, trained):
    assert not trained.model.training
    kinds = {type(module) for module in trained.model.modules() if not list(module.children())}
    assert all(kind.__module__.startswith(("torch.nn", "cifarbn.models")) for kind in kinds)
    assert nn.Conv2d in kinds and nn.BatchNorm2d in kinds
    saved = torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
    for name, value in trained.model.state_dict().items():
        assert torch.equal(value, saved[f"net.{name}"]), name


def test_classes_config_and_transform_are_those_of_the_run(trained):
    assert len(trained.classes) == 10 and trained.config["model"]["width"] == 4
    logits = trained.model(trained.transform(Image.new("RGB", (100, 50)))[None])
    assert logits.shape == (1, 10)


def test_torch_export_gives_the_same_logits_for_any_batch_size(trained):
    inputs = torch.stack([trained.transform(image) for image in IMAGES])
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(trained.model, (inputs[:2],), dynamic_shapes=({0: batch},)).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(inputs), trained.model(inputs))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_onnx_gives_the_same_logits(trained, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    inputs = torch.stack([trained.transform(image) for image in IMAGES])
    file = tmp_path / "model.onnx"
    torch.onnx.export(trained.model, (inputs,), file, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(logits, trained.model(inputs).numpy(), rtol=1e-3, atol=1e-4)


def test_load_has_clear_errors(run, tmp_path):
    with pytest.raises(UserError, match="is not a run folder"):
        cifarbn.load(str(tmp_path))
    with pytest.raises(UserError, match="--trust takes the name"):
        cifarbn.load(run, trust=["../x"])
    with pytest.raises(AttributeError, match="no attribute 'loads'"):
        _ = cifarbn.loads


def test_importing_the_package_imports_no_torch():
    script = "import sys, cifarbn; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT).returncode == 0
