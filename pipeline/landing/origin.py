"""Where a landed export came from, kept beside its files: what the warehouse knows of it otherwise.

`origin.json` in the export's folder, written before the manifest that finishes it. With it a database that is older than
the export, or new, can be given it again (`pipeline/load/landed_exports.py`). Nothing of a patient is in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import orjson

from pipeline.core.files import landing_errors, write_whole
from pipeline.landing.store import Category

__all__ = ["ORIGIN_FILE", "ExportOrigin", "Gap", "GapReason", "read_origin", "write_origin"]

#: lost: the server has the file no more. unusable: what it sends is not a file of that type, or never comes whole.
#: count: taken, with another number of lines than the manifest's `count`.
GapReason = Literal["lost", "unusable", "count"]

ORIGIN_FILE = "origin.json"


@dataclass(frozen=True)
class Gap:
    """A file of the manifest that is not as announced. `lines`: of what was taken; 0 where nothing was."""

    category: Category
    number: int
    resource_type: str
    reason: GapReason
    expected_count: int | None = None
    lines: int = 0


@dataclass(frozen=True)
class ExportOrigin:
    """`group_id` None: of no group. `resource_types`: that were asked for. Times are UTC."""

    group_id: str | None = None
    resource_types: Sequence[str] = ()
    requested_at: datetime | None = None
    since: datetime | None = None
    notes: Sequence[str] = ()
    gaps: Sequence[Gap] = ()


def write_origin(folder: Path, origin: ExportOrigin) -> None:
    """Note it in the export's folder. Raises LandingError."""
    write_whole(folder / ORIGIN_FILE, orjson.dumps(asdict(origin)))


def read_origin(folder: Path) -> ExportOrigin:
    """What is noted; an empty one where nothing is, as in exports of earlier versions. Raises LandingError."""
    path = folder / ORIGIN_FILE
    with landing_errors(path):
        if not path.exists():
            return ExportOrigin()
        content = path.read_bytes()
    try:
        values: dict[str, Any] = orjson.loads(content)
        for name in ("requested_at", "since"):
            values[name] = datetime.fromisoformat(values[name]) if values.get(name) else None
        return ExportOrigin(**{**values, "gaps": tuple(Gap(**gap) for gap in values.get("gaps", ()))})
    except (orjson.JSONDecodeError, TypeError, ValueError, AttributeError):
        return ExportOrigin()  # it says less then: of an export without it, no type is complete
