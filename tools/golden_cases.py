"""The golden cases as the pages of docs/ show them: what was given, and which rows come out, in short.

Cases are read as they are written (tests/golden/*/*.yaml, every value a text); nothing is loaded or run here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

__all__ = ["GoldenCase", "case_name", "golden_cases", "shortened"]

_FOLDER = Path(__file__).resolve().parents[1] / "tests" / "golden"
#: LibYAML where it is: faster.
_LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
#: Elements that say whose a resource is, or in which system a code is: not what a case is about in most cases.
_USUAL_ELEMENTS = frozenset({"resourceType", "id", "system", "subject", "patient", "meta", "beneficiary"})
#: Columns that repeat others or that nearly every row has.
_USUAL_COLUMNS = frozenset({"person_id", "visit_occurrence_id"})


@dataclass(frozen=True)
class GoldenCase:
    """One case: `document` has the keys that tests/golden/test_golden.py describes, all values as texts."""

    resource: str
    topic: str
    document: Mapping[str, Any]

    @property
    def name(self) -> str:
        """`Resource/topic/case`, as in the names of tests."""
        return f"{self.resource}/{self.topic}/{self.document['case']}"

    @property
    def file(self) -> str:
        """Path in the project."""
        return f"tests/golden/{self.resource}/{self.topic}.yaml"

    @property
    def title(self) -> str:
        """The rule that the case shows."""
        return " ".join(str(self.document["title"]).split())

    def resources(self) -> list[Mapping[str, Any]]:
        """Those whose rows are compared, of both exports."""
        return [resource for key in ("fhir", "then") for resource in self.document.get(key) or ()]

    def rows(self) -> Mapping[str, list[Mapping[str, Any]]]:
        """Table → rows, column → value."""
        return {table: rows for table, rows in (self.document.get("rows") or {}).items() if rows}

    def input_text(self, limit: int) -> str:
        """Each resource as its type and `element value` of its leaves, without what is in nearly all of them."""
        return shortened("; ".join(_resource_text(resource) for resource in self.resources()), limit)

    def output_text(self, limit: int, only: Collection[str] = ()) -> str:
        """Rows, outcomes other than `loaded`, issues. `only`: of rows that have such columns those alone, and first."""
        rows = [(table, row) for table, rows in self.rows().items() for row in rows]
        rows.sort(key=lambda each: not any(column in each[1] for column in only))
        parts = [_row_text(table, row, only) for table, row in rows]
        parts += [f"{name} {outcome}" for name, outcome in (self.document.get("outcomes") or {}).items()]
        parts += [f"{name} issue {', '.join(codes)}" for name, codes in (self.document.get("issues") or {}).items()]
        parts += [
            f"{name} waits for {', '.join(found)}" for name, found in (self.document.get("pending") or {}).items()
        ]
        return shortened("; ".join(parts) or "no row", limit)


def case_name(test: str) -> str | None:
    """`Resource/topic/case` of a test's name in the results, or None where it is no golden case."""
    return test.removeprefix("golden case ") if test.startswith("golden case ") else None


@cache
def golden_cases() -> Mapping[str, GoldenCase]:
    """Name → case, in the order of files and within them as written."""
    found = {}
    for file in sorted(_FOLDER.glob("[A-Z]*/*.yaml")):
        for document in yaml.load_all(file.read_text(encoding="utf-8"), _LOADER):
            case = GoldenCase(file.parent.name, file.stem, document)
            found[case.name] = case
    return found


def shortened(text: str, limit: int) -> str:
    """The text up to about `limit` characters, with … where something is left out; cut between words."""
    return text if len(text) <= limit else text[:limit].rsplit(" ", 1)[0].rstrip(";,") + " …"


def _resource_text(resource: Mapping[str, Any]) -> str:
    leaves = [
        f"{path} {value}"
        for name, element in resource.items()
        if name not in _USUAL_ELEMENTS
        for path, value in _leaves(name, element)
    ]
    kind = str(resource.get("resourceType"))
    return f"{kind} ({', '.join(leaves)})" if leaves else kind


def _leaves(path: str, element: Any) -> Iterator[tuple[str, str]]:
    if isinstance(element, Mapping):
        for name, inner in element.items():
            if name not in _USUAL_ELEMENTS:
                yield from _leaves(f"{path}.{name}", inner)
    elif isinstance(element, list):
        for inner in element:
            yield from _leaves(path, inner)
    else:
        yield path, str(element)


def _row_text(table: str, row: Mapping[str, Any], only: Collection[str]) -> str:
    named = {column: value for column, value in row.items() if column in only}
    columns = named or {column: value for column, value in row.items() if column not in _USUAL_COLUMNS}
    return f"{table} ({', '.join(f'{column} {value}' for column, value in columns.items())})"
