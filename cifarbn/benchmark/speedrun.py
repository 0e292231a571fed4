"""`speedrun`: seconds and accuracy of a bare loop, `cifarbn.train` and airbench94_muon.py."""

import argparse
import statistics
from collections.abc import Callable, Sequence

import torch

from cifarbn.benchmark.harness import Results
from cifarbn.benchmark.images import read_images
from cifarbn.benchmark.lightning import recording_trainer
from cifarbn.benchmark.speedrun_bare import BareSpeedrun
from cifarbn.benchmark.speedrun_peer import run_peer
from cifarbn.benchmark.speedrun_recipe import Outcome, Recipe
from cifarbn.data import Images
from cifarbn.data.cifar10 import CLASSES, MEAN, STD
from cifarbn.data.module import DataModule
from cifarbn.errors import UserError
from cifarbn.fast.accelerate import accelerate
from cifarbn.fast.hardware import Hardware
from cifarbn.training.classifier import Classifier

EXPERIMENT = "speedrun_gpu"
COMPILE_MODES = ("default", "max-autotune-no-cudagraphs")  # modes without CUDA graphs: the whole step is captured
BARE, OURS, PEER = "a bare loop", "cifarbn.train", "airbench94_muon"


def measure_speedrun(args: argparse.Namespace) -> Results:
    """Train `experiment=speedrun_gpu` with several seeds, the sides in turn, after two warm-up runs of each.

    The measured time consists of whitening, training and the final test with test-time augmentation (TTA), with the
    images on the device. For `cifarbn.train` it is the sum of `Timing`'s first step, training and evaluation, with
    Lightning, progress bar, TensorBoard, metrics.csv, last-layer recorder and checkpoint.
    """
    peer = args.peer.read_text() if args.peer else None
    recipe = _recipe(args)
    name, train, test = read_images(args.root, args.images)
    if len(train) < recipe.batch_size:
        raise UserError(f"{len(train):,} images are fewer than one batch of {recipe.batch_size}; lower --batch-size")
    hardware = Hardware.choose(compile=False)
    on_gpu = hardware.accelerator == "gpu"
    if args.graph and not on_gpu:
        raise UserError("--graph needs a CUDA device; run without --graph")
    compiled = on_gpu if args.compile is None else args.compile
    mode = args.compile_mode if compiled else ""
    device = torch.device("cuda" if on_gpu else "cpu")
    bare = BareSpeedrun(
        *(recipe, train.to(device), test.to(device), hardware),
        compile=mode,
        graph=on_gpu if args.graph is None else args.graph,
    )
    sides: dict[str, Callable[[int], Outcome]] = {BARE: bare}
    if args.full:
        sides[OURS] = FullSpeedrun(recipe, train, test, Hardware.choose(compile=mode or False))
    outcomes = _in_turn(args.runs, sides)
    notes = []
    if peer is not None:
        try:
            outcomes = {PEER: run_peer(peer, train, test, args.runs, args.peer_minutes)} | outcomes
        except UserError as error:  # keep the results of the other sides
            notes.append(str(error))
    seconds = {side: [each.seconds for each in results] for side, results in outcomes.items()}
    notes = [_summary(side, results, recipe.tta, outcomes.get(PEER)) for side, results in outcomes.items()] + notes
    return {
        "title": f"{EXPERIMENT}: {recipe.epochs} epochs of {len(train):,} images of {name}, batch {recipe.batch_size}; "
        f"{hardware.precision}, compile {mode or 'off'}, CUDA graph {'on' if bare.graph else 'off'}",
        "unit": "images/s",
        "amount": recipe.epochs * len(train),
        "seconds": seconds,
        "tta": recipe.tta,
        "accuracy": {side: [each.accuracy for each in results] for side, results in outcomes.items()},
        "accuracy_without_tta": {
            side: [each.accuracy_without_tta for each in results] for side, results in outcomes.items()
        },
        "notes": notes,
    }


class FullSpeedrun:
    """Train and test as `cifarbn.train`, without composing the config, once per call.

    All runs share one model, reset in place, so that it is compiled in the first run only. The time to capture the
    training step is left out of each run.
    """

    def __init__(self, recipe: Recipe, train: Images, test: Images, hardware: Hardware) -> None:
        self.recipe, self.hardware = recipe, hardware
        self.model = accelerate(recipe.make_model(), hardware)
        self.data = _Given(train, test, recipe)
        self.classifier = Classifier(
            *(self.model, recipe.loss, recipe.make_optimizer, recipe.make_schedule, len(CLASSES), recipe.tta),
            compile=hardware.compile,
            cuda_graphs=hardware.cuda_graphs,
        )

    def __call__(self, seed: int) -> Outcome:
        """Return the seconds and accuracies of one run."""
        recipe = self.recipe
        torch.manual_seed(seed)
        self.model.load_state_dict(recipe.make_model().state_dict())
        self.data.seed = seed
        classifier, built_before = self.classifier, self.classifier.step.build_seconds
        with recording_trainer(self.hardware, max_epochs=recipe.epochs) as (trainer, timing):
            trainer.fit(classifier, self.data)
            trainer.test(classifier, self.data, verbose=False)
        seconds = sum(value for kind, value in timing.seconds.items() if kind != "checkpoint")
        seconds -= classifier.step.build_seconds - built_before
        plain, augmented = (trainer.callback_metrics[f"test/acc{suffix}"].item() for suffix in ("", f"_{recipe.tta}"))
        return Outcome(seconds, augmented, plain)


class _Given(DataModule):
    """A data module of images that are already in memory."""

    def __init__(self, train: Images, test: Images, recipe: Recipe) -> None:
        super().__init__(
            name="given",
            classes=CLASSES,
            train_size=len(train),
            val_size=0,
            mean=MEAN,
            std=STD,
            batch_size=recipe.batch_size,
            eval_batch_size=recipe.eval_batch_size,
            augmentation=recipe.augmentation,
            drop_last=True,
        )
        self._given = train, test

    def read(self) -> tuple[Images, Images]:
        """Return the given training and test images."""
        return self._given


def _recipe(args: argparse.Namespace) -> Recipe:
    if not args.width_scale > 0:
        raise UserError(f"--width-scale must be above 0, not {args.width_scale:g}")
    overrides = [f"model.widths={[max(1, round(width * args.width_scale)) for width in (64, 256, 256)]}"]
    for key, value in {"epochs": args.epochs, "data.batch_size": args.batch_size}.items():
        overrides += [f"{key}={value}"] if value is not None else []
    return Recipe.of(EXPERIMENT, overrides)


def _in_turn(runs: int, sides: dict[str, Callable[[int], Outcome]]) -> dict[str, list[Outcome]]:
    outcomes: dict[str, list[Outcome]] = {name: [] for name in sides}
    for seed in range(-2, runs):  # two warm-up rounds: compiling the second side makes the first one compile again
        for name, side in sides.items():
            outcome = side(max(seed, 0))
            run = "warm-up" if seed < 0 else f"seed {seed}"
            print(
                f"\n{name}, {run}: {outcome.seconds:.3f} s, {outcome.accuracy:.2%}, "
                f"without TTA {outcome.accuracy_without_tta:.2%}"
            )
            if seed >= 0:
                outcomes[name].append(outcome)
    return outcomes


def _summary(side: str, outcomes: Sequence[Outcome], tta: str, peer: Sequence[Outcome] | None) -> str:
    def mean(values: list[float]) -> str:
        spread = f" (std {statistics.stdev(values):.2%})" if len(values) > 1 else ""
        return f"{statistics.mean(values):.2%}{spread}"

    median = statistics.median(each.seconds for each in outcomes)
    ratio = f", {median / statistics.median(each.seconds for each in peer):.2f} times the peer's" if peer else ""
    return (
        f"{side}: {mean([each.accuracy for each in outcomes])} with TTA ({tta}), "
        f"{mean([each.accuracy_without_tta for each in outcomes])} without, n = {len(outcomes)}; "
        f"median {median:.3f} s{ratio}"
    )
