"""An mkdocs hook: show files that must lie outside docs/, such as CONTRIBUTING.md, as pages of the site."""

import re
from typing import Any

from mkdocs.structure.files import File, Files

PAGES = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "multirun_outputs/README.md": "records.md",
}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages, with links that fit their place in the site."""
    for source, page in PAGES.items():
        with open(source, encoding="utf-8") as file:
            content = file.read()
        files.append(File.generated(config, page, content=re.sub(r"\]\((?:\.\./)?docs/", "](", content)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links such as `../SECURITY.md` to the page; show links to other files of the repository as their names."""
    up = "../" * page.file.src_uri.count("/")
    for source, target in PAGES.items():
        for written in (f"{up}../{source}", source if page.file.src_uri in PAGES.values() else ""):
            if written:
                markdown = markdown.replace(f"]({written})", f"]({up}{target})")
    return re.sub(rf"\[([^\]]+)\]\({re.escape(up)}\.\./(?!\.)[^)]*\)", r"\1", markdown)
