"""What the fixed maps of codes to concepts were written from, and the vocabulary release whose concepts they name.

The maps themselves are data: `mappings/concept_maps`. None replaces a look-up: each concept is verified in the vocabulary
that is loaded (f2o-038, f2o-093).
"""

from __future__ import annotations

__all__ = ["FIXED_MAPS_RELEASE", "FROM_THE_GUIDE", "origin_of"]

#: Of the OHDSI vocabularies: the first that has the newest of the concepts, 1546847 (several races).
FIXED_MAPS_RELEASE = "August 2025"

#: Value map → the ConceptMaps of the guide (2.0.0-ballot, which names no vocabulary release) that it was written from.
FROM_THE_GUIDE = {
    "admit_source": "EncounterAdmitSource",
    "allergy_category": "AllergyType, IntoleranceType",
    "condition_status": "ConditionStatusConcepts",
    "discharge_disposition": "EncounterDischargeDisposition",
    "encounter_class": "EncounterClass",
    "ethnicity": "EthnicityClass",
    "gender": "GenderClass",
    "immunization_route": "ImmunizationRoute",
    "race": "RaceClass",
}


def origin_of(value_map: str) -> str:
    """What a value map was written from; the codes of other systems in those of the guide are this project's own."""
    guide = FROM_THE_GUIDE.get(value_map)
    return f"the guide's {guide}, and for this project" if guide else "for this project"
