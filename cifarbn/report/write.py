"""The report's files: which sections it has, and where everything goes."""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

from cifarbn.errors import UserError
from cifarbn.figures import save
from cifarbn.report import curves, features, mistakes, smoothness, structure, table
from cifarbn.report.escape import csv_file
from cifarbn.report.gather import RunSet
from cifarbn.report.page import Image, html_page, markdown_page
from cifarbn.report.section import Drawing, MakeSection, Options, Section
from cifarbn.runs.durable import replace_file, temporary_path

SECTIONS: tuple[MakeSection, ...] = (
    curves.training_curves,
    mistakes.confusion_matrices,
    mistakes.misclassified,
    smoothness.smoothness,
    features.feature_maps,
    features.first_layer_filters,
    structure.structures,
)
"""In the order of the page, below the table: what concerns accuracy comes first."""

PIXELS_PER_INCH = 160
DEFAULTS = Options()


def default_folder(root: Path) -> Path:
    """Return where the report of a folder goes, in that folder.

    Raises:
        UserError: if there is a link of that name, which may lead anywhere.
    """
    out = root / "report"
    _refuse_link(out)
    return out


def write_report(
    sweep: RunSet,
    out: Path,
    options: Options = DEFAULTS,
    opening: Section | None = None,
    closing: Sequence[Section] = (),
) -> list[Section]:
    """Write the whole report into `out`, over what an earlier one left there; returns the sections.

    `opening` stands before the table of all groups, `closing` after the other sections.

    index.html and report.md show the same; table.csv, table.tex and runs.csv hold the numbers; figures/ holds every
    figure as PNG and PDF. A link among them is replaced, never written through.

    Raises:
        UserError: if the folder of the figures is a link.
    """
    out = Path(out)
    sections = [section for make in SECTIONS if (section := make(sweep, options))] + list(closing)
    everything = [*([opening] if opening else []), *sections]
    _refuse_link(out / "figures")
    (out / "figures").mkdir(parents=True, exist_ok=True)
    images = {drawing.name: _save(drawing, out / "figures") for section in everything for drawing in section.drawings}
    files = {name: text for section in everything for name, text in section.files.items()}
    files |= {
        "table.csv": table.as_csv(table.rows(sweep)),
        "table.tex": table.as_latex(sweep),
        "runs.csv": table.as_csv(table.run_rows(sweep)),
        "report.md": markdown_page(sweep, sections, opening),
        "index.html": html_page(sweep, sections, images, opening),
    }
    for name, text in files.items():
        _put(out / name, (csv_file(text) if name.endswith(".csv") else text).encode())
    return everything


def _save(drawing: Drawing, folder: Path) -> Image:
    pdf, png = io.BytesIO(), io.BytesIO()
    with warnings.catch_warnings():
        # A name may be written in letters that the font lacks; the page has them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        save(drawing.figure, pdf, format="pdf", metadata={"CreationDate": None})
        save(drawing.figure, png, format="png", dpi=PIXELS_PER_INCH, metadata={"Software": None})
    _put(folder / f"{drawing.name}.pdf", pdf.getvalue())
    _put(folder / f"{drawing.name}.png", png.getvalue())
    width, _ = drawing.figure.get_size_inches()
    return Image(png.getvalue(), width)


def _put(file: Path, content: bytes) -> None:
    """Replace a file, whatever stands there or where it is written first."""
    temporary_path(file).unlink(missing_ok=True)
    replace_file(file, lambda stream: stream.write(content))


def _refuse_link(folder: Path) -> None:
    if folder.is_symlink():
        raise UserError(
            f"{folder} is a link, and the report does not follow it: remove it, or name a folder with --out"
        )
