"""Specimens and their results: under CDM 5.5 a specimen has the visit and the detail of the Observations that name it.

FHIR's Specimen has no encounter. Observations leave the fact `specimen_result` about their specimen; which visit follows is
a question of rows, and asked with the derived tables (`sql/specimen_visits.sql`), for persons with changed rows: whichever
came first, and whatever goes, the result is that of a fresh load. Earlier versions have no column for it, and facts of
this name are not kept.
"""

from __future__ import annotations

from omop_schema.cdm_fields import fields
from omop_schema.versions import CdmVersion
from pipeline.publication.sql import Database, fragment
from pipeline.publication.tables import table_names

__all__ = ["SPECIMEN_RESULT", "has_specimen_visits", "link_specimens"]

#: Name of the fact.
SPECIMEN_RESULT = "specimen_result"
#: Tables in which results have rows, by the domain of their concepts.
_RESULTS = ("measurement", "observation", "condition_occurrence", "procedure_occurrence")


def has_specimen_visits(version: CdmVersion) -> bool:
    """Whether specimens have a column for their visit."""
    return any(field.name == "visit_occurrence_id" for field in fields("specimen", version))


def link_specimens(db: Database) -> int:
    """Set, move and take away visits of the specimens of persons in `derived_affected`; how many rows were written."""
    db.execute("specimen_results", fact=f"'{SPECIMEN_RESULT}'")
    results = " UNION ".join(
        fragment("visits_of_results", **table_names(table), cdm=db.cdm, etl=db.etl) for table in _RESULTS
    )
    return db.execute("specimen_visits", results=results)
