"""Write the files of a report."""

import io
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from cifarbn.durable import replace_file
from cifarbn.errors import UserError
from cifarbn.figures import STYLES, save, using
from cifarbn.formatting import first_names
from cifarbn.report import against_key, curves, features, mistakes, smoothness, structure, table
from cifarbn.report.escape import csv_file
from cifarbn.report.gather import RunSet
from cifarbn.report.page import Image, html_page, markdown_page
from cifarbn.report.section import Drawing, MakeSection, Options, Section
from cifarbn.runs.untrusted import clean

SECTIONS: tuple[MakeSection, ...] = (
    against_key.against_key,
    curves.training_curves,
    mistakes.confusion_matrices,
    mistakes.misclassified,
    smoothness.smoothness,
    features.feature_maps,
    features.first_layer_filters,
    structure.structures,
)
"""In the order of the page, below the table; a requested comparison and sections about accuracy come first."""

# Without dates and versions the same figure gives the same file.
UNDATED = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
DEFAULTS = Options()
RUNS = "runs.csv"  # written first: a folder that has it holds a report, even if a crash left it incomplete


def default_folder(root: Path) -> Path:
    """Return the default output folder for the report about a folder.

    Raises:
        UserError: if it is a symbolic link, which may lead anywhere.
    """
    out = root / "report"
    _refuse_link(out)
    return out


def write_report(
    sweep: RunSet,
    out: Path,
    options: Options = DEFAULTS,
    lead: Section | None = None,
    closing: Sequence[Section] = (),
) -> list[Section]:
    """Write the report into a folder, replacing the files of an earlier report, and return the sections.

    index.html and report.md have the same content; table.csv, table.tex and runs.csv hold the numbers; figures/ holds
    every figure in the formats of the options. Symbolic links among these files are replaced, not followed.

    Args:
        sweep: the runs.
        out: the output folder; created if missing.
        options: of the report.
        lead: section above the table of all groups.
        closing: sections below all others.

    Raises:
        UserError: if the folder for the figures is a symbolic link, or the output folder holds files but no report.
    """
    out = Path(out)
    _refuse_link(out / "figures")
    _refuse_files_of_others(out)
    with using(options.style):
        sections = [section for make in SECTIONS if (section := make(sweep, options))] + list(closing)
        everything = [*([lead] if lead else []), *sections]
        out.mkdir(parents=True, exist_ok=True)
        _put_text(out / RUNS, table.as_csv(table.run_rows(sweep)))
        (out / "figures").mkdir(exist_ok=True)
        drawings = [drawing for section in everything for drawing in section.drawings]
        images = {drawing.name: _save(drawing, out / "figures", options) for drawing in drawings}
    files = {name: text for section in everything for name, text in section.files.items()}
    files |= {
        "table.csv": table.as_csv(table.rows(sweep)),
        "table.tex": table.as_latex(sweep),
        "report.md": markdown_page(sweep, sections, images, lead),
        "index.html": html_page(sweep, sections, images, lead),
    }
    for name, text in files.items():
        _put_text(out / name, text)
    return everything


def _save(drawing: Drawing, folder: Path, options: Options) -> Image:
    """Write a figure in every format, and return it as shown on the page, where its width is that of the page style."""
    style = STYLES[options.style]
    with warnings.catch_warnings():
        # Names may contain letters that the font of the figure lacks; the page shows them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        for kind in dict.fromkeys(("png", *options.formats)):
            file = io.BytesIO()
            save(drawing.figure, file, format=kind, dpi=style.dpi, metadata=UNDATED[kind])
            _put(folder / f"{drawing.name}.{kind}", file.getvalue())
    width, _ = drawing.figure.get_size_inches()
    links = {kind.upper(): f"figures/{drawing.name}.{kind}" for kind in options.formats if kind != "png"}
    return Image((folder / f"{drawing.name}.png").read_bytes(), width / style.scale, links)


def _put_text(file: Path, text: str) -> None:
    _put(file, (csv_file(text) if file.suffix == ".csv" else text).encode())


def _put(file: Path, content: bytes) -> None:
    """Replace a file; an existing link is replaced as well, not followed."""
    replace_file(file, lambda stream: stream.write(content))


def _refuse_link(folder: Path) -> None:
    if folder.is_symlink():
        raise UserError(
            f"{folder} is a symbolic link, which a report does not follow; remove it, or choose a folder with --out"
        )


def _refuse_files_of_others(folder: Path) -> None:
    """Raise an error if a folder holds files, hidden ones aside, but no report of this or an earlier version."""
    names = [name for name in sorted(os.listdir(folder)) if not name.startswith(".")] if folder.exists() else []
    if names and not _is_table_of_runs(folder / RUNS):
        several = first_names([clean(name) for name in names])
        raise UserError(
            f"{folder} holds files, but no {RUNS} of an earlier report ({several}); they are kept: choose a new or "
            "empty folder with --out, or move them"
        )


def _is_table_of_runs(file: Path) -> bool:
    if not file.is_file():
        return False
    with file.open("rb") as table_of_runs:
        return table_of_runs.read(4) == b"run,"
