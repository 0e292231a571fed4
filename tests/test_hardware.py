import inspect

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment
from torch import nn

from cifarbn.cli.command_line import CONF
from cifarbn.data import Shapes
from cifarbn.errors import UserError
from cifarbn.fast.accelerate import accelerate
from cifarbn.fast.hardware import Hardware, multiplies_bf16
from cifarbn.models import ResNet
from cifarbn.train import train
from cifarbn.training import trainer as trainer_module
from cifarbn.training.classifier import Classifier
from cifarbn.training.trainer import (
    INSTEAD,
    NEEDED,
    POSSIBLE,
    check_options,
    make_trainer,
    starts_processes,
)


def choose(**options):
    return Hardware.choose(**{"accelerator": "cpu", **options})


def test_auto_chooses_bf16_only_if_the_hardware_multiplies_it():
    assert choose().precision == ("bf16-mixed" if multiplies_bf16(cuda=False) else "32-true")


def test_explicit_settings_are_used():
    chosen = choose(precision="32-true", channels_last=False, compile="reduce-overhead")
    assert (chosen.precision, chosen.channels_last, chosen.compile) == ("32-true", False, "reduce-overhead")
    assert "32-true, contiguous, compile reduce-overhead" in str(chosen)
    assert choose(compile=True).compile == "default" and choose(compile=False).compile == ""


def test_a_cpu_run_is_not_compiled_by_default():
    assert choose().compile == ""


@pytest.mark.parametrize("options", [{"accelerator": "tpu"}, {"compile": "fast"}])
def test_unknown_settings_are_an_error(options):
    with pytest.raises(UserError, match="trainer"):
        choose(**options)


def test_channels_last_reaches_the_weights():
    model = accelerate(ResNet(18, width=4), choose(channels_last=True))
    assert model.conv1.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("fused", [True, False])
def test_the_whole_gradient_is_clipped_under_bf16_and_a_fused_optimizer(fused):
    torch.manual_seed(0)
    model = ResNet(18, width=4)
    before = [p.detach().clone() for p in model.parameters()]
    classifier = Classifier(model, nn.CrossEntropyLoss(), lambda p: torch.optim.SGD(p, lr=1.0, fused=fused))
    trainer = make_trainer(
        choose(precision="bf16-mixed"),
        max_epochs=1,
        max_steps=1,
        gradient_clip_val=0.01,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(classifier, Shapes(train_size=100, test_size=10, val_size=10, batch_size=32))
    moved = torch.stack([(p - b).norm() for p, b in zip(model.parameters(), before, strict=True)]).norm()
    assert moved.item() == pytest.approx(0.01, rel=1e-3)


def test_epochs_below_one_are_an_error():
    with pytest.raises(UserError, match="epochs must be at least 1"):
        make_trainer(choose(), max_epochs=0)


# Options of Lightning's Trainer


def options(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=["trainer=cpu", *overrides]).trainer


def test_all_options_in_conf_are_supported():
    for trainer in sorted(file.stem for file in (CONF / "trainer").glob("*.yaml")):
        checked = check_options(options(f"trainer={trainer}"))
        assert set(checked) == set(NEEDED)


def test_every_option_of_lightning_is_supported_or_an_error_with_a_reason():
    theirs = set(inspect.signature(pl.Trainer.__init__).parameters) - {"self"}
    ours = {"channels_last", "compile", "cuda_graphs", "kernels", "threads", "eval_batch_size"}
    assert set(NEEDED) - ours | set(POSSIBLE) <= theirs
    assert not set(INSTEAD) & {*NEEDED, *POSSIBLE} and set(INSTEAD) <= theirs
    for key in theirs - {*NEEDED, *POSSIBLE}:
        with pytest.raises(UserError, match=rf"^trainer\.{key} is not supported: \w+"):
            check_options({**options(), key: None})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+trainer.accumulate_grad_batches=2", "accumulate_grad_batches .* increase data.batch_size"),
        ("+trainer.accumulate_grad_batches=0", "accumulate_grad_batches .* increase data.batch_size"),
        ("+trainer.logger=false", "logger is not supported"),
        ("+trainer.fast_dev_run=-1e400", "use trainer=smoke"),
        ("+trainer.overfit_batches=2", "use trainer.limit_train_batches"),
        ("+trainer.max_tim=1", "there is no trainer.max_tim; did you mean trainer.max_time"),
        ("~trainer.precision", "a run needs trainer.precision"),
        ("~trainer.channels_last", "a run needs trainer.channels_last"),
        ("+trainer.gradient_clip_algorithm=value", "has no effect without trainer.gradient_clip_val"),
        ("trainer.gradient_clip_val=-1", "must be a number above 0"),
        ("trainer.gradient_clip_val=0", "must be a number above 0"),
        ("trainer.max_steps=0", "max_steps must allow at least one step"),
        ("trainer.limit_train_batches=0", "limit_train_batches must allow at least one step"),
        ("+trainer.check_val_every_n_epoch=0", "check_val_every_n_epoch must be a whole number of at least 1"),
        ("trainer.max_steps=1.5", "max_steps takes a whole number"),
        ("+trainer.num_nodes=0", "num_nodes must be a whole number of at least 1"),
        ("trainer.channels_last=maybe", "channels_last takes true or false"),
        ("+trainer.detect_anomaly=abc", "detect_anomaly must be true or false"),
        ("+trainer.deterministic=5", "deterministic must be true or false"),
        ("+trainer.max_time=5", "max_time must be days:hours:minutes:seconds, not 5"),
        ("+trainer.max_time=1h", "max_time must be days:hours:minutes:seconds, not '1h'"),
        ("trainer.strategy=fsdp", "strategy must be one of auto, ddp"),
        ("trainer.devices=2", "trainer=ddp"),
        ("trainer.devices='2'", "trainer=ddp"),
        ("trainer.devices=[0,1]", r"devices=\[0, 1\] is a list of GPUs, but the run uses the CPU"),
        ("trainer.devices='0,1'", "devices=0,1 is a list of GPUs, but the run uses the CPU"),
        ("trainer.devices=1000 trainer.strategy=ddp", "use trainer.devices=[0-9]+ or fewer"),
        ("+trainer.num_nodes=2", "trainer.num_nodes asks for several processes"),
    ],
)
def test_invalid_trainer_options_are_an_error(override, message):
    with pytest.raises(UserError, match=message):
        check_options(options(*override.split()))


@pytest.mark.parametrize("key", NEEDED)
def test_a_missing_option_is_named(key):
    with pytest.raises(UserError, match=rf"^trainer\.{key} is missing"):
        check_options({name: value for name, value in options().items() if name != key})


def test_an_unknown_clipping_algorithm_is_an_error():
    with pytest.raises(UserError, match="must be norm or value, not 'median'"):
        check_options(options("trainer.gradient_clip_val=1", "+trainer.gradient_clip_algorithm=median"))


@pytest.mark.parametrize("devices", [1, "1", [0], "auto", -1])
def test_one_device_is_one_process(devices):
    assert not starts_processes({"accelerator": "cpu", "devices": devices, "strategy": "auto"})


@pytest.mark.parametrize("devices", [None, 1.5, True, {"a": 1}, 0, "0", -2, "two", "", [], ",", [0, 0], "1,1", [-1]])
def test_invalid_devices_are_an_error(devices):
    with pytest.raises(UserError, match="trainer.devices must be a number of devices, auto"):
        starts_processes({"devices": devices})


@pytest.fixture
def two_gpus(monkeypatch):
    """Let torch report two GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.parametrize("devices", [3, "3", [2], "0,2"])
def test_gpus_that_do_not_exist_are_an_error(two_gpus, devices):
    with pytest.raises(UserError, match="asks for a GPU that is not there; the visible GPUs are 0, 1$"):
        check_options({**options("trainer=ddp"), "devices": devices})


@pytest.mark.parametrize(("devices", "checked"), [(2, 2), ("2", 2), ([1], [1]), ("0,1", [0, 1]), (-1, "auto")])
def test_gpus_that_exist_are_selected(two_gpus, devices, checked):
    assert check_options({**options("trainer=ddp"), "devices": devices})["devices"] == checked


def test_there_are_at_most_as_many_cpu_processes_as_cores(monkeypatch):
    monkeypatch.setattr(trainer_module, "usable_cores", lambda: 3)
    several = options("trainer=ddp", "trainer.accelerator=cpu")
    assert check_options({**several, "devices": 3})["devices"] == 3
    with pytest.raises(UserError, match="trainer.devices=4 .* 3 usable cores; use trainer.devices=3 or fewer"):
        check_options({**several, "devices": 4})


def test_all_of_several_gpus_are_several_processes(two_gpus):
    for devices in ("auto", -1):
        assert starts_processes({"accelerator": "auto", "devices": devices, "strategy": "auto"})
        assert not starts_processes({"accelerator": "cpu", "devices": devices, "strategy": "auto"})


@pytest.mark.parametrize("override", ["trainer.devices=2", "trainer=ddp", "+trainer.num_nodes=2"])
def test_runs_that_start_processes(override):
    assert starts_processes(options(override))


@pytest.mark.parametrize(("asked", "precision"), [(32, "32-true"), ("64", "64-true"), ("bf16", "bf16-mixed")])
def test_short_names_of_precisions_are_expanded(asked, precision):
    assert choose(precision=asked).precision == precision


@pytest.mark.parametrize("precision", ["16-mixed", "16-true", 16])
def test_fp16_on_a_cpu_is_an_error(precision):
    with pytest.raises(UserError, match="needs a GPU; on a CPU use bf16-mixed or 32-true"):
        choose(precision=precision)


@pytest.mark.parametrize("precision", ["transformer-engine", "8-true", None])
def test_an_unknown_precision_is_an_error(precision):
    with pytest.raises(UserError, match="trainer.precision must be auto or one of 32-true"):
        choose(precision=precision)


def trainer(**arguments):
    return make_trainer(choose(precision="32-true"), max_epochs=1, logger=False, **arguments)


def test_deterministic_algorithms_are_for_one_run_only():
    trainer(deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    trainer()
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.fixture
def in_slurm(monkeypatch):
    """Set the environment of a job of four tasks, in which this process is the third."""
    for name, value in {"NTASKS": 4, "PROCID": 2, "LOCALID": 2, "JOB_ID": 1, "JOB_NAME": "job", "NODEID": 0}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))


def test_a_single_process_run_ignores_slurm_tasks(in_slurm):
    made = trainer()
    assert isinstance(made._accelerator_connector.cluster_environment, LightningEnvironment)
    assert made.world_size == 1 and made.is_global_zero


def test_lightning_does_not_requeue_slurm_jobs(in_slurm, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "4")
    environment = trainer(strategy="ddp", devices=4)._accelerator_connector.cluster_environment
    assert isinstance(environment, SLURMEnvironment) and not environment.auto_requeue


def test_a_run_reads_no_checkpoint_outside_its_folder_under_slurm(in_slurm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hpc_ckpt_1.ckpt").write_bytes(b"another run's, which Lightning would load")
    tiny = ["data=shapes", "data.train_size=40", "data.val_size=20", "data.test_size=10", "data.batch_size=10"]
    tiny += ["model=vgg_a", "model.width=2", "epochs=1", "trainer=cpu", "trainer.enable_progress_bar=false"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=tiny)
    (tmp_path / "run").mkdir()
    result = train(cfg, tmp_path / "run", tiny)
    assert result["status"] == "done" and result["steps"] == 2
    assert sorted(file.name for file in tmp_path.glob("**/*.ckpt")) == ["hpc_ckpt_1.ckpt", "last.ckpt"]


def test_a_conflict_of_slurm_tasks_and_devices_is_one_error_message(in_slurm):
    with pytest.raises(UserError, match="^trainer: You set `--ntasks=4`"):
        trainer(strategy="ddp", devices=2)


@pytest.mark.parametrize(("algorithm", "largest"), [("value", 1e-3), ("norm", None)])
def test_gradients_are_clipped_by_the_chosen_algorithm(algorithm, largest):
    torch.manual_seed(0)
    model = ResNet(18, width=4)
    before = [p.detach().clone() for p in model.parameters()]
    classifier = Classifier(model, nn.CrossEntropyLoss(), lambda p: torch.optim.SGD(p, lr=1.0))
    arguments = {"max_steps": 1, "limit_val_batches": 0, "enable_checkpointing": False, "enable_progress_bar": False}
    made = trainer(gradient_clip_val=1e-3, gradient_clip_algorithm=algorithm, **arguments)
    made.fit(classifier, Shapes(train_size=100, test_size=10, val_size=10, batch_size=32))
    moved = torch.cat([(p - b).flatten() for p, b in zip(model.parameters(), before, strict=True)])
    if largest:
        assert moved.abs().max().item() == pytest.approx(largest, rel=1e-3)
        assert moved.norm() > 10 * largest
    else:
        assert moved.norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_a_smoke_run_has_four_steps_and_few_images():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        smoke = compose("train", overrides=["trainer=smoke"])
        assert smoke.trainer.max_steps == 4 and smoke.data.eval_batch_size == 100
        assert compose("train").data.eval_batch_size == 1000
        assert compose("train", overrides=["trainer=smoke", "data.eval_batch_size=7"]).data.eval_batch_size == 7
        assert "eval_batch_size" not in compose("train", overrides=["trainer=smoke", "data=gaussian"]).data
