"""The trained nets of the best groups, opened once for all sections that look into them."""

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

# Options of the data that do not change which pictures there are.
OF_TRAINING = tuple(key.removeprefix("data.") for key in keys_with(Tag.TRAINING))


@dataclass(frozen=True, eq=False)
class Inside:
    """The net of a group's first run.

    Attributes:
        group: the group.
        slug: its name for files.
        trained: the net; None where it cannot be had, and `exclusion_reason` says why.
        test: the test pictures; None likewise.
        exclusion_reason: what is missing and what to do about it.
    """

    group: Group
    slug: str
    trained: TrainedModel | None = None
    test: Images | None = None
    exclusion_reason: str = ""

    @property
    def run(self) -> RunRecord:
        """The run that is looked into: of those that count, the one of the lowest seed."""
        return self.group.runs[0]

    @property
    def heading(self) -> str:
        """The title of its figures."""
        return f"{self.group.label} ({self.group.data}, one of {how_many([self.group])})"

    @property
    def whose(self) -> str:
        """Whose net it is, for a caption."""
        return f"{self.group.label} on {self.group.data}, one run (seed {self.run.seed}) of {how_many([self.group])}"


@lru_cache(maxsize=1)
def look_inside(sweep: RunSet, options: Options) -> list[Inside]:
    """The nets of the first `options.nets` groups that count, and the test pictures of their data."""
    return [_open(group, slug, options) for group, slug in best(sweep, options)]


def best(sweep: RunSet, options: Options) -> list[tuple[Group, str]]:
    """The first `options.nets` groups that count, each with its name for files."""
    return list(zip(sweep.counted, slugs(sweep.counted), strict=True))[: options.nets]


def _open(group: Group, slug: str, options: Options) -> Inside:
    trained, run = None, group.runs[0]
    try:
        trained = _load(run, options)
        test = _test_pictures(group.config.get("data"), options)
        if not len(test) or int(test.labels.max()) >= len(trained.classes):
            raise UserError("its test pictures are not of the classes that it was trained on")
    except UserError as error:
        return Inside(group, slug, trained, None, f"{group.label}: {error}")
    return Inside(group, slug, trained, test)


def _load(run: RunRecord, options: Options) -> TrainedModel:
    """The run's net; the page says if there is a checkpoint and it cannot be opened."""
    try:
        return load_run(run.folder, options.trust)
    except UserError as error:
        fault = without_folders(str(error).replace(f"{run.folder}{os.sep}", "").replace(str(run.folder), run.name))
        if (run.folder / CHECKPOINT).exists() and fault not in run.faults:
            run.faults.append(fault)
        raise


def _test_pictures(data: Any, options: Options) -> Images:
    if not isinstance(data, Mapping) or "_target_" not in data:
        raise UserError("cannot read the run's pictures: its config does not say what they are")
    kept = {key: value for key, value in data.items() if key not in OF_TRAINING}
    return _read(json.dumps(kept), options.data_root, options.trust)


@lru_cache(maxsize=4)
def _read(data: str, root: Path, trust: tuple[str, ...]) -> Images:
    config = json.loads(data)
    # result.json leaves out where the files lie, for that is the machine's; and a report downloads nothing.
    here = {"root": root, "download": False}
    try:
        takes = inspect.signature(target_class(config["_target_"], trust)).parameters
        source = build(config, trust, **{key: value for key, value in here.items() if key in takes})
        test = source.read()[1] if hasattr(source, "read") else None
        if not isinstance(test, Images):  # a data module of the user's own
            raise UserError("its data module has no read() that returns training and test pictures")
        return test
    except UserError as error:
        raise UserError(f"cannot read the run's pictures: {error}") from error
    except Exception as error:  # a data module of another version, or of the user's own
        reason = str(error.__cause__ or error).split("\n")[0]
        raise UserError(f"cannot read the run's pictures ({clean(reason)})") from error
