"""The trained models of the best groups, loaded once for all sections that need them."""

import inspect
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from cifarbn.data.images import Images
from cifarbn.errors import UserError, without_folders
from cifarbn.report.captions import how_many, slugs
from cifarbn.report.gather import Group, RunRecord, RunSet
from cifarbn.report.section import Options
from cifarbn.runs.identity import Tag, keys_with
from cifarbn.runs.load import TrainedModel, build, load_run, target_class
from cifarbn.runs.schema import CHECKPOINT
from cifarbn.runs.untrusted import clean

# Options of the data that do not change the images.
OF_TRAINING = tuple(key.removeprefix("data.") for key in keys_with(Tag.TRAINING))


@dataclass(frozen=True, eq=False)
class GroupModel:
    """The trained model of a group's first run.

    Attributes:
        group: the group.
        slug: file name of the group.
        trained: the model; None if it cannot be loaded, see `exclusion_reason`.
        test: the test images; None if they cannot be loaded.
        exclusion_reason: what is missing, and what to do about it.
    """

    group: Group
    slug: str
    trained: TrainedModel | None = None
    test: Images | None = None
    exclusion_reason: str = ""

    @property
    def run(self) -> RunRecord:
        """Return the run whose model is loaded: the included run with the lowest seed."""
        return self.group.runs[0]

    @property
    def heading(self) -> str:
        """Return the title of the model's figures."""
        return f"{self.group.label} ({self.group.data}, one of {how_many([self.group])})"

    @property
    def description(self) -> str:
        """Return a description of the model for captions."""
        return f"{self.group.label} on {self.group.data}, one run (seed {self.run.seed}) of {how_many([self.group])}"


@lru_cache(maxsize=1)
def best_models(sweep: RunSet, options: Options) -> list[GroupModel]:
    """Return the models of the first `options.models` groups, and the test images of their data."""
    return [_open(group, slug, options) for group, slug in best(sweep, options)]


def best(sweep: RunSet, options: Options) -> list[tuple[Group, str]]:
    """Return the first `options.models` groups with included runs, each with its file name."""
    return list(zip(sweep.counted, slugs(sweep.counted), strict=True))[: options.models]


def _open(group: Group, slug: str, options: Options) -> GroupModel:
    trained, run = None, group.runs[0]
    try:
        trained = _load(run, options)
        test = _test_images(group.config.get("data"), options)
        if not len(test) or int(test.labels.max()) >= len(trained.classes):
            raise UserError("the test labels do not match the classes that the model was trained on")
    except UserError as error:
        return GroupModel(group, slug, trained, None, f"{group.label}: {error}")
    return GroupModel(group, slug, trained, test)


def _load(run: RunRecord, options: Options) -> TrainedModel:
    """Load the run's model; record in `run.faults` if there is a checkpoint that cannot be loaded."""
    try:
        return load_run(run.folder, options.trust)
    except UserError as error:
        fault = without_folders(str(error).replace(f"{run.folder}{os.sep}", "").replace(str(run.folder), run.name))
        if (run.folder / CHECKPOINT).exists() and fault not in run.faults:
            run.faults.append(fault)
        raise


def _test_images(data: Any, options: Options) -> Images:
    if not isinstance(data, Mapping) or "_target_" not in data:
        raise UserError("cannot read the run's images: its config has no data._target_")
    kept = {key: value for key, value in data.items() if key not in OF_TRAINING}
    return _read(json.dumps(kept), options.data_root, options.trust)


@lru_cache(maxsize=4)
def _read(data: str, root: Path, trust: tuple[str, ...]) -> Images:
    config = json.loads(data)
    # A result.json of this program contains no paths; those of a foreign one, such as its cache, are not used. A report
    # downloads nothing.
    here = {"root": root, "cache": None, "download": False}
    try:
        takes = inspect.signature(target_class(config["_target_"], trust)).parameters
        source = build(config, trust, **{key: value for key, value in here.items() if key in takes})
        test = source.read()[-1] if hasattr(source, "read") else None
        if not isinstance(test, Images):  # a user's own data module
            raise UserError("its data module has no read() that returns training and test images")
        return test
    except UserError as error:
        remedy = ". Add --data-root DIR with the folder of these images" if "content" in config else ""
        raise UserError(f"cannot read the run's images: {error}{remedy}") from error
    except Exception as error:  # a data module of another version, or the user's own
        reason = str(error.__cause__ or error).split("\n")[0]
        raise UserError(f"cannot read the run's images ({clean(reason)})") from error
