"""The patients of a crawl, as people write them down: one FHIR id a line, or CSV. Messages name lines, never ids."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from pipeline.core.errors import UsageError
from pipeline.extract.rest.client import is_readable_id

__all__ = ["checked_patients", "read_patients"]

#: Names of the column with the ids, where a CSV has a header.
_COLUMNS = ("patient_id", "fhir_id", "patient_fhir_id", "patient", "id")


def read_patients(file: Path) -> list[str]:
    """The FHIR ids in a file, in its order, each once. `#` begins a comment line; `Patient/` before an id is dropped.

    A CSV has one column, or a header with a column patient_id, fhir_id, patient_fhir_id, patient or id. Raises
    UsageError that names the line.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read ({type(error).__name__}).", "Give a text file of FHIR ids.") from error
    rows = [(number, row) for number, row in enumerate(csv.reader(text.splitlines()), start=1) if _counts(row)]
    column = 0
    if rows:
        header = [cell.strip().lower() for cell in rows[0][1]]
        named = next((header.index(name) for name in _COLUMNS if name in header), None)
        if named is not None:
            column, rows = named, rows[1:]
        elif len(header) > 1:
            raise UsageError(
                f"{file} has {len(header)} columns and no header that names the one with the FHIR ids.",
                f"Name the column {', '.join(_COLUMNS[:-1])} or {_COLUMNS[-1]}.",
            )
    return checked_patients(((number, row[column] if column < len(row) else "") for number, row in rows), str(file))


def _counts(row: list[str]) -> bool:
    return any(cell.strip() for cell in row) and not row[0].lstrip().startswith("#")


def checked_patients(given: Iterable[tuple[int, str]], where: str) -> list[str]:
    """(number, id) → ids, each once. Raises UsageError for what is not a valid FHIR id, and for an empty list."""
    found: dict[str, None] = {}
    for number, text in given:
        patient_id = text.strip().removeprefix("Patient/")
        if not is_readable_id(patient_id):
            advice = "An id is letters, digits, '-' and '.': not an MRN with blanks, and not a whole address."
            raise UsageError(f"{where}: number {number} is not a valid FHIR id of a patient.", advice)
        found[patient_id] = None
    if not found:
        raise UsageError(f"{where}: there is no patient.", "Give at least one FHIR id.")
    return list(found)
