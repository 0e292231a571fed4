"""An untrusted run folder is data: only classes on an allow-list are imported or instantiated."""

import itertools
import json
import pickle
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from data_files import write_folder
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from test_config import CONF, options
from test_predict import RESULT
from torch import nn

from cifarbn.errors import UserError
from cifarbn.models import ResNet
from cifarbn.predict import main as predict
from cifarbn.report import Options, gather
from cifarbn.report.__main__ import main as report
from cifarbn.report.structure import structures
from cifarbn.report.trained_model import best_models
from cifarbn.runs.load import TrainedModel, build, build_model, check_prefixes, checked
from cifarbn.runs.old_names import TARGETS
from cifarbn.runs.transform import Transform

CANARY = "canary"


def named_options(group):
    """The group's options that name a class of this package or of torch."""
    return [name for name in options(group) if name not in ("custom", "timm", "torchvision")]


MODELS = [name for name in named_options("model") if not name.startswith("dln")]
ATTACKS = {
    "open": {"_target_": "builtins.open", "_args_": [CANARY, "w"]},
    "write_text": {
        "_target_": "pathlib.Path.write_text",
        "_args_": [{"_target_": "pathlib.Path", "_args_": [CANARY]}, "x"],
    },
    "log file": {"_target_": "logging.FileHandler", "filename": CANARY},
    "copy": {"_target_": "shutil.copy", "src": __file__, "dst": CANARY},
    "download": {"_target_": "urllib.request.urlretrieve", "url": Path(__file__).as_uri(), "filename": CANARY},
    "compiler": {"_target_": "cifarbn.fast.kernels.library._run", "_args_": [["touch", CANARY]]},
    "numpy pickle": {"_target_": "numpy.load", "file": "pickle", "allow_pickle": True},
    "torch pickle": {"_target_": "torch.load", "f": "pickle", "weights_only": False},
    "mkdir": {"_target_": "os.mkdir", "path": CANARY},
    "symlink": {"_target_": "os.symlink", "src": "/", "dst": CANARY},
    "system": {"_target_": "os.system", "command": f"touch {CANARY}"},
    "process": {"_target_": "subprocess.Popen", "args": ["touch", CANARY]},
    "eval": {"_target_": "builtins.eval", "_args_": [f"open({CANARY!r}, 'w')"]},
    "database": {"_target_": "sqlite3.connect", "database": CANARY},
    "save": {"_target_": "torch.save", "obj": 1, "f": CANARY},
    "module of ours, its own import": {"_target_": "cifarbn.data.cifar10.os.mkdir", "path": CANARY},
    "module of ours, its class": {"_target_": "cifarbn.data.module.Path.touch", "_args_": [CANARY]},
    "module of ours, pickle": {"_target_": "cifarbn.data.cifar10.pickle.loads", "_args_": [CANARY]},
    "module of torch's, its own import": {"_target_": "torch.nn.modules.module.torch.save", "obj": 1, "f": CANARY},
    "method of a class": {"_target_": "torch.nn.Module.__init__", "_args_": [1]},
    "function of torch.nn": {"_target_": "torch.nn.utils.clip_grad_norm_", "parameters": [], "max_norm": 1.0},
    "function of torch.nn.init": {"_target_": "torch.nn.init.zeros_", "tensor": 1},
    "function of ours": {"_target_": "cifarbn.data.draw_shapes", "n": 1, "seed": 0},
    "loader of ours": {"_target_": "cifarbn.data.InMemoryLoader"},
    "another package of ours": {"_target_": "cifarbn.runs.result_file.write_result", "folder": ".", "result": {}},
    "longer name": {"_target_": "cifarbn.models_of_mine.Model"},
    "not imported": {"_target_": "evil_module.Model"},
    "no string": {"_target_": ["os", "mkdir"], "path": CANARY},
    "relative": {"_target_": "..os.mkdir", "path": CANARY},
    "interpolation": {"_target_": "torch.nn.Linear", "in_features": "${oc.env:HOME}", "out_features": 1},
    "interpolated target": {"_target_": "${model.other}", "other": "os.mkdir"},
    "interpolated key": {"_target_": "torch.nn.Identity", "${oc.env:HOME}": 1},
    "unknown directive": {"_target_": "torch.nn.Identity", "_call_": "os.mkdir"},
    "graph": {"_target_": "torchvision.models.feature_extraction.DualGraphModule"},
    "builder": {"_target_": "torchvision.models.get_model", "name": "resnet18", "weights": "DEFAULT"},
    "builder with positional weights": {"_target_": "torchvision.models.resnet18", "_args_": [True]},
    "partial builder": {"_target_": "torchvision.models.resnet18", "_partial_": True},
}
PLACES = {
    "model": lambda attack: attack,
    "partial": lambda attack: {**attack, "_partial_": True},
    "norm": lambda attack: {"_target_": "cifarbn.models.ResNet", "depth": 18, "norm": attack},
    "positional": lambda attack: {"_target_": "torch.nn.Sequential", "_args_": [{"_target_": "torch.nn.ReLU"}, attack]},
    "left to the constructor": lambda attack: {"_target_": "torch.nn.Identity", "_recursive_": False, "a": [attack]},
    "no target about it": lambda attack: {"a": {"b": [attack]}},
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with things that leave a canary: a pickle, a module, a download."""

    class Bomb:
        def __reduce__(self):
            return open, (str(tmp_path / CANARY), "w")

    (tmp_path / "pickle").write_bytes(pickle.dumps(Bomb()))
    (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / CANARY)!r}, 'w')\nclass Model: pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("torchvision.models.resnet", "torchvision._internally_replaced_utils"):
        if module in sys.modules:
            monkeypatch.setattr(
                "torchvision.models._api.load_state_dict_from_url", lambda *a, **k: (tmp_path / CANARY).touch()
            )
    return tmp_path


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_hostile_is_imported_or_built(here, attack, place):
    config = PLACES[place](ATTACKS[attack])
    with pytest.raises(UserError) as refused:
        build(config)
    with pytest.raises(UserError):
        build_model({"model": config})
    assert not (here / CANARY).exists() and "evil_module" not in sys.modules
    assert "\n" not in str(refused.value)
    if place == "model" and "--trust" in str(refused.value) and isinstance(target := ATTACKS[attack]["_target_"], str):
        assert target in str(refused.value)


@pytest.mark.parametrize("attack", ATTACKS)
def test_hostile_run_folders_execute_nothing(here, attack):
    """The commands' own way, as far as they build anything: the model, its norm, and the data."""
    config = {
        "model": {**RESULT["config"]["model"], "norm": ATTACKS[attack]},
        "data": {"_target_": "cifarbn.data.Shapes", "test_size": 1, "mean": ATTACKS[attack]},
    }
    run = here / "sweep" / "run"
    run.mkdir(parents=True)
    (run / "result.json").write_text(json.dumps(RESULT | {"config": config}))
    with pytest.raises(SystemExit) as ended:
        predict([str(run), __file__])
    assert "cannot build the run's model" in ended.value.code and "\n" not in ended.value.code
    sweep = gather(here / "sweep")
    (loaded,) = best_models(sweep, Options())
    assert "cannot build" in loaded.exclusion_reason
    assert "Not drawn" in structures(sweep, Options()).points[0]
    honest = {**config, "model": RESULT["config"]["model"]}
    (run / "result.json").write_text(json.dumps(RESULT | {"config": honest}))
    torch.save({"state_dict": {f"net.{k}": v for k, v in build_model(honest).state_dict().items()}}, run / "last.ckpt")
    (loaded,) = best_models(gather(here / "sweep"), Options())
    assert loaded.trained is not None and loaded.test is None and "cannot read the run's" in loaded.exclusion_reason
    assert not (here / CANARY).exists() and "evil_module" not in sys.modules


def test_the_canary_sings_where_a_config_is_simply_instantiated(here):
    """Else the tests above would pass for no reason."""
    from hydra.utils import instantiate

    instantiate({"model": {"_target_": "torch.nn.Identity", "a": ATTACKS["copy"]}})
    assert (here / CANARY).exists()


def test_a_refusal_is_one_message_that_names_the_target_and_the_remedy(here, capsys):
    run = here / "sweep" / "run"
    run.mkdir(parents=True)
    config = {**RESULT["config"], "model": ATTACKS["open"], "data": {"_target_": "cifarbn.data.Shapes"}}
    (run / "result.json").write_text(json.dumps(RESULT | {"config": config}))
    report([str(here / "sweep")])
    output = capsys.readouterr().out
    assert "builtins.open" in output and "--trust PACKAGE" in output
    page = (here / "sweep" / "report" / "index.html").read_text()
    assert "1 run in 1 group." in page and "builtins.open" in page
    assert not (here / CANARY).exists()


def resolved(path, **root):
    """A config file with its interpolations resolved against `root`."""
    return OmegaConf.to_container(OmegaConf.create({**root, "it": OmegaConf.load(path)}), resolve=True)["it"]


def test_every_network_with_every_norm_and_activation_is_allowed():
    """All of conf/, as result.json holds it; names are only looked up; another test builds the models."""
    norms = [resolved(CONF / "norm" / f"{name}.yaml") for name in named_options("norm")]
    activations = [resolved(CONF / "activation" / f"{name}.yaml") for name in named_options("activation")]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        models = [
            OmegaConf.to_container(compose("train", [f"model={name}"]).model, resolve=True)
            for name in named_options("model")
        ]
    assert len(models) * len(norms) * len(activations) > 900
    for model, norm, activation in itertools.product(models, norms, activations):
        found = checked(model | {"norm": norm, "activation": activation})
        assert found["_target_"].startswith("cifarbn.models.")
        assert found["norm"].keys() == norm.keys()


@pytest.mark.parametrize("number", range(len(MODELS)))
def test_every_network_is_built_again_and_classifies(number):
    """Each with another norm and activation, narrow."""
    norm, activation = (named_options(group)[number % len(named_options(group))] for group in ("norm", "activation"))
    narrow = "model.widths=[4,4,4]" if MODELS[number] == "speednet" else "model.width=2"
    output = [f"model={MODELS[number]}", f"norm={norm}", f"activation={activation}", narrow]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        model = OmegaConf.to_container(compose("train", output).model, resolve=True)
    trained = TrainedModel(build_model({"model": model}).eval(), Transform((0.5,) * 3, (0.5,) * 3), ())
    assert trained.probabilities(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).shape == (1, 10)


@pytest.mark.parametrize("name", sorted({*options("data")} - {"dataset"}))  # whose dataset is the user's own class
def test_every_data_set_is_allowed(name, tmp_path):
    write_folder(tmp_path / "images")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        data = OmegaConf.to_container(compose("train", [f"data={name}"]).data, resolve=True)
    assert build(data | ({"root": str(tmp_path / "images")} if "root" in data else {}))


@pytest.mark.parametrize("norm", ["torch.nn.BatchNorm2d", "cifarbn.models.BatchNorm2d"])
def test_what_is_built_is_what_the_config_says(norm):
    model = {**RESULT["config"]["model"], "norm": {"_target_": norm, "_partial_": True}, "stem": "imagenet"}
    model = build_model({"model": model})
    assert isinstance(model, ResNet) and model.head.out_features == 3
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == 20


@pytest.mark.parametrize("old", TARGETS)
def test_an_old_name_of_a_layer_is_built_as_today_s(old):
    assert checked({"_target_": old, "_partial_": True}) == {"_target_": TARGETS[old], "_partial_": True}
    layer, today = build({"_target_": old, "_partial_": True}), build({"_target_": TARGETS[old], "_partial_": True})
    assert layer.func is today.func


RECORDS = sorted((Path(__file__).parents[1] / "multirun_outputs").glob("*.record"))


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_the_networks_of_committed_runs_are_built(record):
    configs = [json.loads(file.read_text())["config"]["model"] for file in record.rglob("result.json")]
    different = {json.dumps(config, sort_keys=True): config for config in configs}
    assert different
    for config in different.values():
        with torch.device("meta"):
            model = build_model({"model": config})
        norm = config["norm"]["_target_"]
        assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == norm.endswith(".BatchNorm2d")


def test_some_committed_run_has_an_old_name():
    assert any('"cifarbn.models.BatchNorm2d"' in file.read_text() for r in RECORDS for file in r.rglob("result.json"))


def test_a_network_of_torchvision_s_is_built_without_its_weights(here):
    """Its builders would download them; what counts is the run's checkpoint."""
    model = {"_target_": "torchvision.models.resnet18", "weights": "DEFAULT", "num_classes": 3}
    assert build_model({"model": model}).fc.out_features == 3
    assert build_model({"model": model | {"pretrained": True}}).fc.out_features == 3
    backbone = checked({"_target_": "torchvision.models.segmentation.fcn_resnet50"})
    assert backbone["weights_backbone"] is None and backbone["weights"] is None
    assert build({"_target_": "torchvision.models.resnet.BasicBlock", "inplanes": 4, "planes": 4}).stride == 1
    assert isinstance(build({"_target_": "torchvision.models.alexnet"}), torchvision.models.AlexNet)
    assert not (here / CANARY).exists()


PARTS = """
import os
from pathlib import Path
from torch import nn

class Model(nn.Module):
    def __init__(self, width, norm):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, width, 3), norm(width), nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).mean((2, 3)))

class Tool:
    def __init__(self):
        open("canary", "w")

def make():
    open("canary", "w")
"""


@pytest.fixture
def own(here):
    """A user's own package, imported by nothing yet, and a finished run of its model."""
    package = here / "own_package_for_trust"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "parts.py").write_text(PARTS)
    norm = {"_target_": "torch.nn.BatchNorm2d", "_partial_": True}
    config = {"model": {"_target_": "own_package_for_trust.parts.Model", "width": 2, "norm": norm}}
    run = here / "run"
    run.mkdir()
    (run / "result.json").write_text(json.dumps(RESULT | {"config": config}))
    yield run
    for name in [name for name in sys.modules if name.startswith("own_package_for_trust")]:
        del sys.modules[name]


def test_a_user_s_own_network_opens_with_trust_alone(own, red_image, capsys):
    with pytest.raises(SystemExit, match=r"own_package_for_trust.parts.Model.*--trust"):
        predict([str(own), str(red_image)])
    assert "own_package_for_trust" not in sys.modules
    config = json.loads((own / "result.json").read_text())["config"]
    model = build_model(config, ["own_package_for_trust"])
    torch.save({"state_dict": {f"net.{key}": value for key, value in model.state_dict().items()}}, own / "last.ckpt")
    predict([str(own), str(red_image), "--trust", "own_package_for_trust.parts"])
    assert "circle" in capsys.readouterr().out
    (loaded,) = best_models(gather(own), Options(trust=("own_package_for_trust",)))
    assert loaded.trained is not None
    (drawing,) = structures(gather(own), Options(trust=("own_package_for_trust",))).drawings
    assert "with 3 layers" in drawing.alt


@pytest.mark.parametrize(
    "target",
    [
        *(
            "parts.make",
            "parts.Tool",
            "parts.os.mkdir",
            "parts.Path.touch",
            "parts.Path",
            "parts.nn.Linear",
            "parts.Model.forward",
        ),
        *("parts.Gone", "gone.Model"),
    ],
)
def test_trust_is_for_networks_that_the_package_defines(own, target):
    with pytest.raises(UserError):
        build({"_target_": f"own_package_for_trust.{target}"}, ["own_package_for_trust"])
    assert not Path(CANARY).exists()


def test_trust_of_one_package_is_none_of_another(own):
    for trust in (["own_package"], ["own_package_for_trust.net"], ["own_package_for_trust.parts.Model"]):
        with pytest.raises(UserError, match="--trust"):
            build({"_target_": "own_package_for_trust.parts.Model"}, trust)
    assert "own_package_for_trust" not in sys.modules


@pytest.mark.parametrize("prefix", ["", "a b", "a.", ".a", "../a", "a-b", "a..b"])
def test_trust_takes_a_package_s_name(prefix):
    with pytest.raises(UserError, match="--trust takes"):
        check_prefixes([prefix])


@pytest.fixture
def red_image(tmp_path):
    from PIL import Image

    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    return tmp_path / "red.png"
