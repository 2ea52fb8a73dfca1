"""What an export can be and what can become of it: the values of `etl.export_job.kind` and `.state`.

Words alone; this module imports nothing, so that every stage may use it. Which state follows which is in docs/modules.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

__all__ = [
    "ENDED_STATES",
    "OPEN_STATES",
    "STATES_BEFORE_LANDING",
    "STATES_WITH_FILES",
    "ExportKind",
    "ExportState",
    "sql_values",
]


class ExportKind(StrEnum):
    """Where the lines of an export come from."""

    BULK = "bulk"
    FOLDER = "folder"
    #: landed lines that are loaded once more
    REPLAY = "replay"
    #: resources that others refer to, read one by one
    HYDRATION = "hydration"
    #: searches patient by patient
    CRAWL = "crawl"


class ExportState(StrEnum):
    """How far an export has come."""

    REQUESTED = "requested"
    RUNNING = "running"
    #: the site has finished, and its manifest is here
    COMPLETE = "complete"
    LANDED = "landed"
    PUBLISHED = "published"
    #: the site refused it inside the group's window
    SKIPPED = "skipped"
    FAILED = "failed"
    #: the site does not know it any more
    GONE = "gone"


#: States in which an export is open: at most one a site and group.
OPEN_STATES = (ExportState.REQUESTED, ExportState.RUNNING, ExportState.COMPLETE, ExportState.LANDED)

STATES_BEFORE_LANDING = (ExportState.REQUESTED, ExportState.RUNNING, ExportState.COMPLETE)
STATES_WITH_FILES = (ExportState.LANDED, ExportState.PUBLISHED)
#: States in which an export ends without files.
ENDED_STATES = (ExportState.FAILED, ExportState.GONE, ExportState.SKIPPED)


def sql_values(values: Iterable[StrEnum]) -> str:
    """`('requested', 'running')`, to stand after IN."""
    quoted = [f"'{value}'" for value in values]
    return f"({', '.join(quoted)})"
