"""The versions of what the project follows. Nothing is imported here: settings ask for them as well as the schema."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["DEFAULT_CDM_VERSION", "IG_VERSION", "NEWEST_CDM_VERSION", "CdmVersion"]


class CdmVersion(StrEnum):
    """The versions of the OMOP Common Data Model that a database can have, the oldest first."""

    V5_4 = "5.4"
    V5_5 = "5.5"

    @property
    def label(self) -> str:
        """As `cdm_source.cdm_version` has it, such as `v5.4`."""
        return f"v{self.value}"

    def is_before(self, other: CdmVersion) -> bool:
        order = list(CdmVersion)
        return order.index(self) < order.index(other)


#: What a database has unless EPIC_OMOP_CDM_VERSION says another one.
DEFAULT_CDM_VERSION = CdmVersion.V5_4
#: It has all tables and columns of the older ones: staged frames are in its form.
NEWEST_CDM_VERSION = CdmVersion.V5_5

#: Of HL7's implementation guide "FHIR to OMOP".
IG_VERSION = "2.0.0-ballot"
