"""What the table cdm_source says of an instance, as settings: two hospitals must not look alike in a network study.

The fields are the table's columns. Whatever is left out is as before: the project's own name, and what publication knows.
"""

from __future__ import annotations

from datetime import date

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

__all__ = ["CdmSource"]

_OURS = "epic-omop"
#: Characters that the columns of text hold; the others have no limit.
_LENGTHS = {
    "cdm_source_name": 255,
    "cdm_source_abbreviation": 25,
    "cdm_holder": 255,
    "source_documentation_reference": 255,
    "cdm_etl_reference": 255,
    "cdm_release_identifier": 255,
}


class CdmSource(BaseModel):
    """One value a column; None: publication fills it in, or it stays empty."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cdm_source_name: str = _OURS
    cdm_source_abbreviation: str = _OURS
    #: Who holds the instance: the hospital or health system.
    cdm_holder: str = _OURS
    source_description: str = "Epic FHIR R4 bulk exports"
    #: Where the source is described.
    source_documentation_reference: str | None = None
    #: None: the versions of the software and of the guide.
    cdm_etl_reference: str | None = None
    #: CDM 5.5. None: the date and number of the publication that changed rows last.
    cdm_release_identifier: str | None = None
    #: None: the day of the last export that changed rows, and the day of its publication.
    source_release_date: date | None = None
    cdm_release_date: date | None = None

    @field_validator("*", mode="after")
    @classmethod
    def _fits(cls, value: object, info: ValidationInfo) -> object:
        """Longer texts would be refused by the table, or cut without a word."""
        name = info.field_name or ""
        if not isinstance(value, str):
            return value
        if not value.strip() or any(ord(letter) < 32 or ord(letter) == 127 for letter in value):
            raise ValueError("must not be blank, nor hold a line break or another control character")
        length = _LENGTHS.get(name)
        if length is not None and len(value) > length:
            raise ValueError(f"must have {length} characters at most, and has {len(value)}")
        return value

    @property
    def unnamed(self) -> tuple[str, ...]:
        """The columns that distinguish instances and still say what every instance says."""
        return tuple(
            name
            for name in ("cdm_source_name", "cdm_source_abbreviation", "cdm_holder")
            if getattr(self, name) == _OURS
        )
