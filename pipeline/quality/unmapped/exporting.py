"""Unmapped codes as CSV for people: as Usagi imports them, or a plain table with suggestions and columns to fill in."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from pipeline.core.spreadsheet_cells import guarded
from pipeline.quality.unmapped.codes import UnmappedSource
from pipeline.quality.unmapped.domains import ElementDomains

__all__ = [
    "MOST_SUGGESTIONS",
    "PLAIN_COLUMNS",
    "USAGI_COLUMNS",
    "ExportFormat",
    "Suggest",
    "Suggestion",
    "as_csv",
    "no_suggestions",
]

ExportFormat = Literal["usagi", "plain"]

MOST_SUGGESTIONS = 5

#: Usagi asks which column is what; the others it keeps as `ADD_INFO:<column>` in the file that it saves.
USAGI_COLUMNS = (
    *("source_code", "source_name", "source_frequency", "auto_concept_id"),
    *("source_system", "site", "found_in", "tried"),
)
_SUGGESTED = tuple(
    f"suggestion_{number}_{part}" for number in range(1, MOST_SUGGESTIONS + 1) for part in ("id", "name", "score")
)
#: The last ones are for the steward to fill in; `target_concept_id` 0 says "reviewed, no map".
PLAIN_COLUMNS = (
    *("site", "source_system", "source_code", "source_name", "source_frequency", "found_in"),
    *("first_seen", "last_seen", "tried", *_SUGGESTED),
    *("target_concept_id", "kind", "status", "equivalence", "reviewer", "comment"),
)


@dataclass(frozen=True)
class Suggestion:
    """A Standard concept that a source may mean; `score` from 0 to 1."""

    concept_id: int
    name: str
    score: float
    domain_id: str = ""
    #: the name of the concept, or of one that maps to it, that is like the source: plain letters
    matched: str = ""


class Suggest(Protocol):
    """Finds concepts in the loaded vocabulary, the best first."""

    def __call__(self, source: UnmappedSource, domains: frozenset[str] | None, limit: int) -> Sequence[Suggestion]:
        """`domains`: those that the elements of the source take; None: any."""
        ...


def no_suggestions(source: UnmappedSource, domains: frozenset[str] | None, limit: int) -> Sequence[Suggestion]:  # noqa: ARG001
    """Leaves the columns of suggestions empty."""
    return ()


def as_csv(
    sources: Iterable[UnmappedSource],
    style: ExportFormat,
    domains: ElementDomains,
    suggest: Suggest = no_suggestions,
) -> str:
    """The whole file, comma-separated, UTF-8 without a BOM, one line a source."""
    out = io.StringIO()
    columns = USAGI_COLUMNS if style == "usagi" else PLAIN_COLUMNS
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for source in sources:
        found = suggest(source, domains.of_places(source.places), MOST_SUGGESTIONS)[:MOST_SUGGESTIONS]
        writer.writerow({name: guarded(str(value)) for name, value in _cells(source, found).items()})
    return out.getvalue()


def _cells(source: UnmappedSource, suggestions: Sequence[Suggestion]) -> dict[str, object]:
    cells: dict[str, object] = {
        "site": source.site,
        "source_system": source.system,
        "source_code": source.code if source.code is not None else source.text or "",
        "source_name": source.name or source.text or source.code or "",
        "source_frequency": source.rows,
        "found_in": "; ".join(source.places),
        "first_seen": f"{source.first_seen:%Y-%m-%d}" if source.first_seen else "",
        "last_seen": f"{source.last_seen:%Y-%m-%d}" if source.last_seen else "",
        "tried": source.tried or "",
        "auto_concept_id": suggestions[0].concept_id if suggestions else "",
    }
    for number, suggestion in enumerate(suggestions, 1):
        cells[f"suggestion_{number}_id"] = suggestion.concept_id
        cells[f"suggestion_{number}_name"] = suggestion.name
        cells[f"suggestion_{number}_score"] = f"{suggestion.score:.2f}"
    return cells
