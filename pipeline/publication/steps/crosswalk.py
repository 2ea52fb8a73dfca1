"""The optional person crosswalk: which patient of one site is which of another (specification, "Patient → person").

A CSV file outside the project with the columns site, patient_id, same_as_site, same_as_patient_id. A patient in it is
treated as one who was replaced by the other. The file has FHIR ids: it belongs under the same protection as `etl`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from pipeline.core.errors import ConfigurationError
from pipeline.fhir.identity import SurrogateKeys

__all__ = ["crosswalk_lines", "read_crosswalk"]

_COLUMNS = ("site", "patient_id", "same_as_site", "same_as_patient_id")
_ADVICE = f"Its columns are {', '.join(_COLUMNS)}; each patient has one line at most."


def read_crosswalk(file: Path | None, salt: str) -> pl.DataFrame:
    """Columns from, next: surrogate ids of Patients. Raises ConfigurationError that names the line, never an id."""
    rows: dict[int, int] = {}
    for number, (site, patient, other_site, other) in crosswalk_lines(file):
        source = SurrogateKeys(site, salt).of("Patient", patient)
        if source in rows:
            raise ConfigurationError(f"Line {number} of the person crosswalk is wrong.", _ADVICE)
        rows[source] = SurrogateKeys(other_site, salt).of("Patient", other)
    return pl.DataFrame({"from": list(rows), "next": list(rows.values())}, schema={"from": pl.Int64, "next": pl.Int64})


def crosswalk_lines(file: Path | None) -> Iterator[tuple[int, tuple[str, str, str, str]]]:
    """(line, (site, patient id, site of the other, id of the other)). Raises ConfigurationError that names the line."""
    if file is None:
        return
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            for row in reader:
                site, patient, other_site, other = ((row.get(name) or "").strip() for name in _COLUMNS)
                if not all((site, patient, other_site, other)):
                    raise ConfigurationError(f"Line {reader.line_num} of the person crosswalk is wrong.", _ADVICE)
                yield reader.line_num, (site, patient, other_site, other)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigurationError(
            f"The person crosswalk {file} cannot be read ({type(error).__name__}).", _ADVICE
        ) from None
