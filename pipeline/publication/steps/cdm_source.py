"""`cdm_source`: the one row that says what instance this is, of which version, and how current.

What it says is a setting (`pipeline.core.cdm_source`) or known here. Not here: the facts of sites, which are in `metadata`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from typing import Any

from omop_schema.cdm_fields import fields
from omop_schema.versions import IG_VERSION
from pipeline.core.settings import Settings
from pipeline.landing.store import LandedExport
from pipeline.publication.sql import Database
from pipeline.warehouse.cdm_version import version_concept

__all__ = ["RELEASE_LENGTH", "InstanceSource", "save_cdm_source"]

#: Columns that say how current the rows are: they stand still as long as the rows do, unless a setting gives them. Not the
#: vocabulary: rows that another release does not change are right under it.
_OF_RELEASE = (
    "source_release_date",
    "cdm_release_date",
    "cdm_release_identifier",
    "cdm_etl_reference",
)


#: Characters of `vocabulary_version`.
RELEASE_LENGTH = 20


@dataclass(frozen=True)
class InstanceSource:
    """What the row is made of."""

    settings: Settings
    export: LandedExport
    vocabulary_release: str
    today: date

    def row(self, vocabulary_concept: int) -> dict[str, Any]:
        """Column → value, for the columns of the settings' version. `vocabulary_concept`: of that version."""
        given = self.settings.cdm_source.model_dump()
        found = {
            "cdm_etl_reference": f"epic-omop {version('epic-omop')}, HL7 FHIR to OMOP {IG_VERSION}",
            "source_release_date": self.export.transaction_time.date(),
            "cdm_release_date": self.today,
            "cdm_release_identifier": f"{self.today.isoformat()}/{self.export.export_id}",
            "cdm_version": self.settings.cdm_version.label,
            "cdm_version_concept_id": vocabulary_concept,
            "vocabulary_version": self.vocabulary_release[:RELEASE_LENGTH],
        }
        row = found | {column: value for column, value in given.items() if value is not None}
        return {field.name: row.get(field.name) for field in fields("cdm_source", self.settings.cdm_version)}

    @property
    def settled(self) -> frozenset[str]:
        """Columns of a release that a setting gives."""
        given = self.settings.cdm_source.model_dump()
        return frozenset(name for name in _OF_RELEASE if given.get(name) is not None)


def save_cdm_source(db: Database, source: InstanceSource, *, has_changed: bool) -> None:
    """Replace the row where rows of the CDM have changed, or where it does not say what the settings say."""
    row = source.row(version_concept(db.connection, db.vocab, source.settings.cdm_version))
    if not has_changed:
        columns = [name for name in row if name not in _OF_RELEASE or name in source.settled]
        standing = db.rows("cdm_source_row", columns=", ".join(row))
        if not standing:  # nothing was ever loaded
            return
        before = dict(zip(row, standing[0], strict=True))
        if all(before[name] == row[name] for name in columns):
            return
        row = {**before, **{name: row[name] for name in columns}}
    placeholders = ", ".join(f"%({name})s" for name in row)
    db.execute("replace_cdm_source", row, columns=", ".join(row), values=placeholders)
