"""Run folders: their contents, what identifies a run, and how they are read and written.

They are the only interface between training, which writes run folders, and analysis, which reads them.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cifarbn.runs.data_frame import frame as frame


def __getattr__(name: str) -> Any:
    """Import `frame` on first use, since it needs pandas."""
    if name == "frame":
        from cifarbn.runs.data_frame import frame

        return frame
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
