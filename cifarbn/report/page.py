"""The report as one page: index.html, which is self-contained, and the same content as Markdown."""

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cifarbn.report import table
from cifarbn.report.captions import NO_BREAK, count, data_and_n
from cifarbn.report.escape import markdown, markdown_code
from cifarbn.report.gather import RunSet
from cifarbn.report.section import Section
from cifarbn.runs.untrusted import clean

CSS_PIXELS_PER_INCH = 96
EXCLUDED = "Excluded from all means"
READ_IN_PART = "Partly read"
# The files with the numbers of the table, in the same folder as the page.
NUMBERS = {"table.csv": " (the table, unrounded)", "table.tex": " (for LaTeX)", "runs.csv": " (one row per run)"}


class Image(NamedTuple):
    """A figure as a PNG file.

    Attributes:
        png: contents of the file.
        inches: width of the figure on the page.
        links: format -> file, for the other formats of the figure.
    """

    png: bytes
    inches: float
    links: Mapping[str, str] = MappingProxyType({})

    @property
    def base64(self) -> str:
        """Return the file as the data of a `data:` URL."""
        return b64encode(self.png).decode()

    @property
    def css_width(self) -> int:
        """Return the width in CSS pixels."""
        return round(self.inches * CSS_PIXELS_PER_INCH)


def html_page(
    sweep: RunSet, sections: Sequence[Section], images: Mapping[str, Image], lead: Section | None = None
) -> str:
    """Return the page: table, excluded runs, then the sections. It has no scripts, and images are embedded.

    Links lead to the numbers and figures as separate files; the page is complete without them.

    Args:
        sweep: the runs.
        sections: below the table, in this order.
        images: one for each drawing, by its name.
        lead: section above the table.
    """
    return _HTML.get_template("page.html").render(
        sweep=sweep,
        title=title(sweep),
        summary=summary(sweep),
        columns=table.columns(sweep) if sweep.counted else {},
        notes=notes(sweep),
        numbers=NUMBERS,
        excluded_heading=EXCLUDED,
        read_in_part_heading=READ_IN_PART,
        lead=lead,
        sections=sections,
        images=images,
        provenance=provenance(sweep),
    )


def markdown_page(
    sweep: RunSet, sections: Sequence[Section], images: Mapping[str, Image], lead: Section | None = None
) -> str:
    """Return the same page as Markdown, with the images in figures/."""
    parts = [f"# {markdown(title(sweep))}", markdown(summary(sweep))]
    if lead:
        parts += [*_markdown_section(lead, images), "## All runs, best first"]
    if sweep.counted:
        parts.append(table.as_markdown(table.columns(sweep)).rstrip())
    parts += [*map(markdown, notes(sweep)), _markdown_files(NUMBERS)]
    for heading, runs in ((EXCLUDED, sweep.excluded), (READ_IN_PART, sweep.read_in_part)):
        lines = [
            f"- {markdown_code(run)}{f' ({markdown(group)})' if group else ''}: {markdown(reason)}"
            for run, group, reason in runs
        ]
        parts += [f"## {heading}", "\n".join(lines)] if lines else []
    if sweep.same:
        overrides = ", ".join(markdown_code(f"{key}={value}") for key, value in sweep.same.items())
        parts.append(f"Common to all runs: {overrides}")
    for section in sections:
        parts += _markdown_section(section, images)
    return "\n\n".join([*parts, "---", markdown(provenance(sweep))]) + "\n"


def title(sweep: RunSet) -> str:
    """Return the title: the names of the folders, without their paths."""
    return f"Runs in {', '.join(clean(root.resolve().name) for root in sweep.roots)}"


def summary(sweep: RunSet) -> str:
    """Return the number of runs and groups, the data and the device."""
    runs = sum(len(group.runs) for group in sweep.groups)
    text = f"{count(runs, 'run')} in {count(len(sweep.counted), 'group')}"
    text += "; runs of a group differ only in the seed." if len(sweep.counted) > 1 else "."
    if excluded := len(sweep.excluded):
        text += f" {count(excluded, 'run')} excluded, see below."
    if not sweep.counted:
        return text
    hardware = table.devices(sweep)
    trained_on = f" Trained on {hardware[0]}." if len(hardware) == 1 and hardware[0] else ""
    return f"{text} {data_and_n(sweep.counted)}{trained_on}"


def notes(sweep: RunSet) -> list[str]:
    """Return the notes needed to interpret the table."""
    if not sweep.counted:
        return ["No run has finished yet."]
    notes = []
    if all("device" in run.result for group in sweep.counted for run in group.runs):  # not in runs of RunRecorder
        notes.append("Accuracies are measured after the last epoch; nothing was selected by the test set.")
    if any(len(group.runs) > 1 for group in sweep.counted):
        notes.append("± is the sample standard deviation over runs; the interval is Student's t interval of the mean.")
    if any(len(group.runs) == 1 for group in sweep.counted):
        notes.append("With n = 1 the spread over seeds is unknown, so small differences may be due to chance.")
    if any(group.target is not None for group in sweep.counted):
        notes.append("The gap is measured minus target accuracy, in percentage points.")
    if len({group.data for group in sweep.counted}) > 1:
        notes.append("Results on different data sets are not comparable.")
    return [" ".join(notes)]


def provenance(sweep: RunSet) -> str:
    """Return the code and package versions of the runs."""
    results = [run.result for group in sweep.groups for run in group.runs + group.excluded]
    versions = {f"{name} {version}" for result in results for name, version in result.get("versions", {}).items()}
    commits = {str(result.get("git_commit") or "no commit")[:20] for result in results}
    return f"Versions: {', '.join(sorted(versions)) or 'unknown'}; code: {', '.join(sorted(commits))}."


def _markdown_section(section: Section, images: Mapping[str, Image]) -> list[str]:
    parts = [f"## {section.title}", *map(markdown, section.text.split("\n") if section.text else ())]
    parts += [table.as_markdown(section.table).rstrip()] if section.table else []
    parts += ["\n".join(f"- {markdown(point)}" for point in section.points)] if section.points else []
    parts += [_markdown_files(dict.fromkeys(section.files, ""))] if section.files else []
    for drawing in section.drawings:
        links = "".join(f"\n[{kind}]({file})" for kind, file in images[drawing.name].links.items())
        image = f"![{markdown(drawing.alt)}](figures/{drawing.name}.png)"
        parts.append(f"{image}\n\n*{markdown(drawing.caption)}*{links}")
    return parts


def _markdown_files(files: Mapping[str, str]) -> str:
    return f"Files: {', '.join(f'[{name}]({name}){description}' for name, description in files.items())}."


def _kind(heading: str) -> str:
    if heading in table.PROSE:
        return "word prose"
    return "word" if heading in table.WORDS else "number"


def _whole_parts(label: str) -> str:
    """Return a label that breaks lines between its parts, not between a key and its value."""
    return ", ".join(re.sub(" (?=[^ ]+$)", NO_BREAK, part) for part in label.split(", "))


def _anchor(section: Section) -> str:
    return section.title.lower().replace(" ", "-")


_HTML = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_HTML.globals["zip"] = partial(zip, strict=True)
_HTML.filters |= {"kind": _kind, "whole_parts": _whole_parts, "anchor": _anchor}
