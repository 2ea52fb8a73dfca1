"""Types of view columns that this project converts, beside FHIR's own: what each takes and gives.

The converters are bound to a worker's caches in `pipeline.transform.plan`; here is what a mapping has to know of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from pipeline.transform.identifiers import IDENTIFIED_TYPES
from pipeline.transform.references import PROVIDER, TARGETS, VISIT_PROVIDER
from pipeline.transform.reporters import REPORTERS

__all__ = ["CONVERTED_TYPES", "PRIMITIVE_TYPES", "ColumnType", "column_dtype"]

#: FHIR primitive → what its column holds; every other primitive is text.
PRIMITIVE_TYPES: Mapping[str, pl.DataType] = {
    "decimal": pl.Float64(),
    "integer": pl.Int64(),
    "positiveInt": pl.Int64(),
    "unsignedInt": pl.Int64(),
    "boolean": pl.Boolean(),
}


@dataclass(frozen=True)
class ColumnType:
    """`takes`: the FHIR type, or what of a resource, that the column's path gives."""

    takes: str
    meaning: str
    dtype: pl.DataType = pl.String()  # noqa: RUF009  # a value without state
    #: Text that only a rule reads: JSON.
    is_json: bool = False


_CODES = pl.Int32()
_KEY = pl.Int64()

CONVERTED_TYPES: Mapping[str, ColumnType] = {
    "CodeableConcept": ColumnType("CodeableConcept", "code set: its codings and text, by a number", _CODES),
    "Coding": ColumnType("Coding", "code set of the one coding", _CODES),
    "Quantity": ColumnType("Quantity", "code set of its unit: code and text", _CODES),
    **{
        f"Reference({name})": ColumnType(
            "Reference",
            f"surrogate id of the {' or '.join(target.types)}; a reference that is not followed is an issue",
            _KEY,
        )
        for name, target in TARGETS.items()
    },
    PROVIDER: ColumnType("References", "surrogate id of the first that can be a provider", _KEY),
    VISIT_PROVIDER: ColumnType("Encounter", "surrogate id of the participant who is the provider of the visit", _KEY),
    **{
        name: ColumnType(
            "resource", f"true where the patient or a relative is the {' or the '.join(elements)}", pl.Boolean()
        )
        for name, elements in REPORTERS.items()
    },
    **{
        f"identifier({name})": ColumnType("Identifier", f"key under which identifiers of {name} are compared", _KEY)
        for name in IDENTIFIED_TYPES
    },
    **{
        f"identifier_value({name})": ColumnType("Identifier", "the same, of an identifier that names no system", _KEY)
        for name in IDENTIFIED_TYPES
    },
    "patient_location": ColumnType("Patient", "key of the home (else first) address: state, zip 3, country", _KEY),
    "site_location": ColumnType("Organization, Location", "key of the address", _KEY),
    "is_home": ColumnType("Location", "true where a person lives there", pl.Boolean()),
    "physical_type": ColumnType("Location.physicalType", "FHIR's code of it, also by its words"),
    "is_not_on_file": ColumnType(
        "AllergyIntolerance", "true where it only says that nothing is known, and has no date", pl.Boolean()
    ),
    "npi": ColumnType("Identifiers", "the first national provider number"),
    "provider_taxonomy": ColumnType("CodeableConcepts", "code set of the first with a code of the taxonomy", _CODES),
    "role_specialty": ColumnType("PractitionerRole", "JSON of its specialty, for a fact", is_json=True),
    "verification_status": ColumnType(
        "CodeableConcept", "its code of FHIR's list, or what its words say of it, else its first"
    ),
    "clinical_status": ColumnType(
        "CodeableConcept", "its code of FHIR's list, or what its words say of it, else its first"
    ),
    "inexact_length": ColumnType("MedicationRequest", "the comparator of a boundsDuration"),
    "integer32": ColumnType("integer", "the integer; one of more than 32 bits is refused", pl.Int64()),
    "comparator": ColumnType("Quantity.comparator", "the comparator, NULL for `=`; an unknown one is refused"),
    "period_text": ColumnType("Period", "`start/end`, either may be empty"),
    "age_text": ColumnType("Age", "`45 a`: value and UCUM code; NULL without value or unit"),
    "quantity_text": ColumnType("Quantity", "`500 mg`, with its comparator"),
    "rate_text": ColumnType("MedicationAdministration.dosage", "`100 mL/h`, `50 mL/1 h`"),
    "is_rate": ColumnType("Quantity", "true where its unit is one by time: `mL/h`, `mcg/kg/min`", pl.Boolean()),
    "rate_an_hour": ColumnType("MedicationAdministration.dosage", "amount that is given in an hour", pl.Float64()),
    "rate_unit": ColumnType("MedicationAdministration.dosage", "code set of that amount's unit", _CODES),
    "rate_unit_text": ColumnType("MedicationAdministration.dosage", "that amount's unit as it is written"),
    "other_value": ColumnType("element with value[x]", "text of the value types that OMOP has no column for"),
    "dosage_text": ColumnType("resource with dosages", "texts of all dosage instructions, in order"),
    "daily_dose": ColumnType("MedicationRequest …", "dose a day in the unit of the dispensed quantity", pl.Float64()),
    "daily_dose_in_other_unit": ColumnType(
        "MedicationRequest …", "dose a day where it is in another unit than the quantity", pl.Float64()
    ),
    "other_dose_unit": ColumnType("MedicationRequest …", "code set of the unit of `daily_dose_in_other_unit`", _CODES),
    "counts_pieces": ColumnType("Quantity", "true where its unit is a solid piece, such as a tablet", pl.Boolean()),
    "pharmacy": ColumnType("MedicationRequest", "code set of the identifier and id of its dispenser", _CODES),
    "dispensing_pharmacy": ColumnType(
        "MedicationDispense", "code set of identifiers and ids of performers and location, and of its type", _CODES
    ),
    "dosage_start": ColumnType(
        "MedicationRequest", "first start of the bounds of all instructions, among those that are dates"
    ),
    "dosage_start_unusable": ColumnType(
        "MedicationRequest", "first start of the bounds that is not a valid date, for an issue"
    ),
    "dosage_end": ColumnType(
        "MedicationRequest", "last end of the bounds of all instructions, among those that are dates"
    ),
    "dosage_end_unusable": ColumnType(
        "MedicationRequest", "first end of the bounds that is not a valid date, for an issue"
    ),
    "dosage_length": ColumnType("MedicationRequest", "`10d` or `3mo`: how long the instructions are followed"),
    "usable_event": ColumnType("Timing.event", "the first that is a date and no sentinel, else what comes nearest"),
    "unusable_event": ColumnType("Timing.event", "the first that stands before the usable one, for an issue"),
    "medication_code": ColumnType(
        "MedicationRequest …", "code set of its medication; NULL where that is a resource", _CODES
    ),
    "lacks_contained_medication": ColumnType(
        "MedicationRequest …", "true where a contained medication is not there, or says nothing", pl.Boolean()
    ),
    "lacks_contained_device": ColumnType(
        "DeviceUseStatement", "true where a contained device is not there", pl.Boolean()
    ),
    "contained_device": ColumnType(
        "DeviceUseStatement", "JSON of the contained device, for `used_device`", is_json=True
    ),
    "contained_device_code": ColumnType("DeviceUseStatement", "code set of the contained device's type", _CODES),
    "device_summary": ColumnType("Device", "JSON: what an exposure takes from its device", is_json=True),
    "device_identifier": ColumnType("Device", "UDI-DI: as given, else read out of the human-readable carrier"),
    "device_lot": ColumnType("Device", "the lot: the element, else the one in a GS1 carrier"),
    "merged_types": ColumnType("Location, Organization", "one code set of the codings of all its types", _CODES),
    "other_category": ColumnType(
        "US Core race or ethnicity", "code set of what it says in another way than by US Core's codings", _CODES
    ),
    "attached_text": ColumnType("DocumentReference …", "text of the first attachment that carries one itself"),
    "attached_binary": ColumnType(
        "DocumentReference …", "surrogate id of the Binary of the first text elsewhere", _KEY
    ),
    "is_unsupported": ColumnType(
        "DocumentReference …", "true where an attachment is not text: PDF, image, C-CDA", pl.Boolean()
    ),
    "text_language": ColumnType("DocumentReference …", "language of the attachments, else of the resource"),
    "canonical": ColumnType("canonical", "the URL without version and fragment"),
    "canonical_key": ColumnType("canonical", "surrogate id of the resource that the URL's end names", _KEY),
    "questionnaire_codes": ColumnType("Questionnaire", "JSON: linkId → codings of the item", is_json=True),
    "item_code": ColumnType(
        "QuestionnaireResponse.item", "JSON: codings of the question that the item says", is_json=True
    ),
    "json": ColumnType("CodeableConcept", "JSON, for a fact", is_json=True),
}


def column_dtype(column_type: str | None, *, collection: bool = False) -> pl.DataType:
    """What a column of a type holds; a collection is a list of it."""
    converted = CONVERTED_TYPES.get(column_type or "")
    single = converted.dtype if converted else PRIMITIVE_TYPES.get(column_type or "", pl.String())
    return pl.List(single) if collection else single
