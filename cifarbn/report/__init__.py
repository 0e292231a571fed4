"""From run folders to tables, figures and one page: `python -m cifarbn.report DIR ...`.

`gather` reads the run folders and groups them; `table` condenses the groups; each of the sections that `write` lists
turns them into figures; `page` puts table and sections into index.html and report.md.
"""

from cifarbn.report.gather import Group, RunRecord, RunSet, gather
from cifarbn.report.section import Drawing, Options, Section
from cifarbn.report.write import write_report

__all__ = ["Drawing", "Group", "Options", "RunRecord", "Section", "RunSet", "gather", "write_report"]
