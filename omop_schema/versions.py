"""The versions of what the project follows."""

from __future__ import annotations

__all__ = ["CDM_VERSION", "IG_VERSION"]

#: Of the OMOP Common Data Model.
CDM_VERSION = "v5.4"

#: Of HL7's implementation guide "FHIR to OMOP".
IG_VERSION = "2.0.0-ballot"
