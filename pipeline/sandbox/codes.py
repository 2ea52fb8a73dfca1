"""The codes that the synthetic patients use, read from `codes.csv`.

The list is the one place that says which codes a demonstration vocabulary must hold. Columns: `system`, `code`,
`display`; `use` (what the generator does with the code); `unit`, `low`, `high` (UCUM unit and reference range of
a numeric result); `partner` (the same meaning in another code system, or the coded answers of a question).
Rows whose use begins with `local-` have no mapping, on purpose. No resource is built here.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

__all__ = ["Code", "CodeBook", "code_book"]


@dataclass(frozen=True)
class Code:
    """One row of `codes.csv`; `low` and `high` are None where the result is not a number."""

    system: str
    code: str
    display: str
    use: str
    unit: str
    low: float | None
    high: float | None
    partner: tuple[str, ...]

    def coding(self, system: str | None = None) -> dict[str, str]:
        """The FHIR Coding, optionally under another name (alias) of its code system."""
        return {"system": system or self.system, "code": self.code, "display": self.display}


class CodeBook:
    """All codes, by use in the file's order and by code."""

    def __init__(self, codes: list[Code]) -> None:
        self.codes = codes
        self._by_code = {code.code: code for code in codes}

    def of(self, use: str) -> list[Code]:
        return [code for code in self.codes if code.use == use]

    def get(self, code: str) -> Code:
        return self._by_code[code]


@cache
def code_book() -> CodeBook:
    """The codes of `codes.csv`, read once a process."""
    text = files("pipeline.sandbox").joinpath("codes.csv").read_text(encoding="utf-8")
    return CodeBook([_code(row) for row in csv.DictReader(text.splitlines())])


def _code(row: dict[str, str]) -> Code:
    return Code(
        system=row["system"],
        code=row["code"],
        display=row["display"],
        use=row["use"],
        unit=row["unit"],
        low=float(row["low"]) if row["low"] else None,
        high=float(row["high"]) if row["high"] else None,
        partner=tuple(row["partner"].split()),
    )
