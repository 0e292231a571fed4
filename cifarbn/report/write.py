"""The report's files: which sections it has, and where everything goes."""

from pathlib import Path

from cifarbn.figures import save
from cifarbn.report import curves, features, mistakes, smoothness, structure, table
from cifarbn.report.gather import Sweep
from cifarbn.report.page import Image, html_page, markdown_page
from cifarbn.report.section import Drawing, MakeSection, Options, Section

SECTIONS: tuple[MakeSection, ...] = (
    curves.training_curves,
    smoothness.smoothness,
    features.feature_maps,
    features.first_layer_filters,
    mistakes.confusion_matrices,
    mistakes.misclassified,
    structure.structures,
)
"""In the order of the page, below the table."""

PIXELS_PER_INCH = 160
DEFAULTS = Options()


def write_report(sweep: Sweep, out: Path, options: Options = DEFAULTS, opening: Section | None = None) -> list[Section]:
    """Write the whole report into `out`, over what an earlier one left there; returns the sections.

    `opening` stands before the table of all groups.

    index.html and report.md show the same; table.csv, table.tex and runs.csv hold the numbers; figures/ holds every
    figure as PNG and PDF.
    """
    out = Path(out)
    sections = [section for make in SECTIONS if (section := make(sweep, options))]
    everything = [*([opening] if opening else []), *sections]
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
        (out / name).write_text(text, encoding="utf-8")
    return everything


def _save(drawing: Drawing, folder: Path) -> Image:
    save(drawing.figure, folder / f"{drawing.name}.pdf", metadata={"CreationDate": None})
    file = folder / f"{drawing.name}.png"
    save(drawing.figure, file, dpi=PIXELS_PER_INCH, metadata={"Software": None})
    width, _ = drawing.figure.get_size_inches()
    return Image(file.read_bytes(), width)
