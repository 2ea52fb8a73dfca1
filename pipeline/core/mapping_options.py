"""Named settings of the mapping: where sources contradict each other, or a site may want what the guide says.

Each option has a default, which is the mapping specification's choice, and is documented in docs/mapping-options.md.
`sites.yaml` sets them under `mapping:` of a site. Rules of a mapping name the option under which they hold
(`option: {preliminary_results: keep}`); rules read them from `Derivation.options`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic.fields import FieldInfo

__all__ = ["MappingOptions"]


def _option(default: str, *resources: str, description: str) -> Any:
    """An option of the mapping: its default, the resource types whose rows it changes, and what each value does."""
    return Field(default=default, description=description, json_schema_extra={"resources": list(resources)})


#: Resources with a date of their own.
_DATED = (
    "AllergyIntolerance",
    "Condition",
    "Coverage",
    "Device",
    "DeviceUseStatement",
    "DiagnosticReport",
    "DocumentReference",
    "Encounter",
    "FamilyMemberHistory",
    "ImagingStudy",
    "Immunization",
    "MedicationAdministration",
    "MedicationDispense",
    "MedicationRequest",
    "MedicationStatement",
    "Observation",
    "Patient",
    "Procedure",
    "QuestionnaireResponse",
    "Specimen",
)


#: Resources with numbers that have a code.
_MEASURED = ("Observation", "QuestionnaireResponse")


#: Resources of which one fact may come twice.
_REPEATED = ("Condition", "Procedure")


class MappingOptions(BaseModel):
    """The options of one site. The description of a field says what each value does."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    preliminary_results: Literal["exclude", "keep"] = _option(
        "exclude", "Observation", description="Observations of status `preliminary`: no row, or rows like final ones."
    )
    observation_type: Literal["specific", "general"] = _option(
        "specific",
        "Observation",
        description=(
            "observation_type_concept_id: `specific` distinguishes laboratory, survey, exam and patient-reported"
            " (f2o-051); `general` is 32817 (EHR) for all."
        ),
    )
    data_absent: Literal["row", "exclude"] = _option(
        "row",
        "Observation",
        description=(
            "An Observation or component that has a dataAbsentReason instead of a value: `row` is a row whose value is"
            " NULL (Themis: the test was done); `exclude` makes none, as the guide says, and counts it as `data_absent`."
        ),
    )
    panel_row: Literal["with_value", "always"] = _option(
        "with_value",
        "Observation",
        "DiagnosticReport",
        description=(
            "The own row of an Observation with components or members, and of a DiagnosticReport with results:"
            " `with_value` makes it only where the panel itself has a value (else `panel_without_value`); `always`"
            " makes it in any case, and components, members and results carry its id in measurement_event_id or"
            " observation_event_id."
        ),
    )
    unmapped_results: Literal["measurement", "observation"] = _option(
        "measurement",
        "Observation",
        "DiagnosticReport",
        description=(
            "Results of category laboratory, vital-signs or imaging whose code has no concept: `measurement` keeps them"
            " there with concept 0, so that they are found beside the others; `observation` leaves measurement to rows"
            " whose concept is of domain Measurement (Themis, by the letter)."
        ),
    )
    interpretation_as_value: Literal["without_value", "beside_number"] = _option(
        "without_value",
        *_MEASURED,
        description=(
            "The interpretation of a result as value_as_concept_id: `without_value` only where there is no value;"
            " `beside_number` also beside a number (60 and normal), which Themis calls a valid choice."
        ),
    )
    negative_values: Literal["off", "report", "apply"] = _option(
        "apply",
        *_MEASURED,
        description=(
            "Numbers below 0 where the files of `plausibility/` do not allow them: `apply` does what they say (NULL, by"
            " Themis; value_source_value stays), with the issue `value_negative`; `report` keeps the number, with the"
            " issue; `off` looks at none."
        ),
    )
    plausibility: Literal["off", "report", "apply"] = _option(
        "report",
        *_MEASURED,
        description=(
            "Numbers outside the limits of the files of `plausibility/`: `report` keeps them, and counts them by concept in"
            " the report of each load; `apply` does what the files say (`keep`, `null`, or `exclude` the row), with the issue"
            " `value_implausible`; `off` looks at none."
        ),
    )
    standard_units: Literal["off", "report", "apply"] = _option(
        "report",
        *_MEASURED,
        description=(
            "Numbers in units that the files of `units/` convert: `report` keeps number and unit, and counts them by"
            " concept and unit; `apply` converts number, range and unit_concept_id, while value_source_value and"
            " unit_source_value stay what the source said; `off` looks at none."
        ),
    )
    duplicates: Literal["report", "apply"] = _option(
        "report",
        *_REPEATED,
        description=(
            "One fact from two resources, by those rules of the files of `duplicates/` that name types (a problem list entry"
            " and an encounter diagnosis of one day): `report` counts them in the report of each load, and all rows stay;"
            " `apply` leaves out the rows of the later types (excluded as `counted_elsewhere`), which come back when the"
            " row that counted goes."
        ),
    )
    questionnaire_codes: Literal["link_id", "explicit"] = _option(
        "link_id",
        "QuestionnaireResponse",
        description=(
            "The code of a question: `link_id` takes a linkId that ends in a LOINC code (`/68517-2`) for that code, as"
            " forms made from LOINC panels have it; `explicit` takes none but what an extension or the definition names."
        ),
    )
    questionnaire_text: Literal["drop", "keep"] = _option(
        "drop",
        "QuestionnaireResponse",
        description=(
            "Answers in free text, which can hold names and addresses: `drop` keeps only those that are a number;"
            " `keep` writes them to value_as_string."
        ),
    )

    condition_not_confirmed: Literal["observation", "drop", "condition"] = _option(
        "observation",
        "Condition",
        description=(
            "Conditions of verificationStatus `provisional`, `differential` or `refuted`: `observation` gives a row of"
            " observation whose qualifier says which (the guide); `drop` gives no row (excluded as `not_confirmed`,"
            " `refuted`); `condition` gives provisional and differential ones a row like confirmed ones with status"
            " 32899 (preliminary diagnosis), refuted ones stay observations."
        ),
    )
    condition_resolved: Literal["status", "ignore"] = _option(
        "status",
        "Condition",
        description=(
            "clinicalStatus `resolved`: `status` makes it the condition_status_concept_id (32906, the guide's map);"
            " `ignore` leaves that to the verificationStatus (the guide's text)."
        ),
    )
    observation_encounter: Literal["outpatient", "emergency_and_inpatient"] = _option(
        "outpatient",
        "Encounter",
        description=(
            "Encounters of class OBSENC: `outpatient` is 9202; `emergency_and_inpatient` is 262 (the guide's map),"
            " although patients under observation are not admitted."
        ),
    )
    stay_level: Literal["unit", "room", "bed"] = _option(
        "unit",
        "Encounter",
        description=(
            "How fine the places of a visit are that are details of it: places of one period (Epic lists unit, room and"
            " bed beside one another) are one visit_detail at the finest care site that is not finer than this; what is"
            " finer makes none where an entry of its unit covers its period."
        ),
    )
    death_from_discharge: Literal["ignore", "death"] = _option(
        "ignore",
        "Encounter",
        description=(
            "A dischargeDisposition that says the patient died (`exp`, NUBC 20, 40, 41, 42, or what a site's"
            " crosswalk calls `meaning:died`): `ignore`, or `death` for a death on the last day of the stay where"
            " the Patient has no deceasedDateTime."
        ),
    )
    procedure_in_progress: Literal["exclude", "keep"] = _option(
        "exclude", "Procedure", description="Procedures of status `in-progress`: no row, or rows like completed ones."
    )

    medication_requests: Literal["usual", "strict"] = _option(
        "usual",
        "MedicationRequest",
        description=(
            "Which orders are drug exposures. `usual`: also those that were stopped (a departure from f2o-060, because"
            " what was stopped had begun), of every intent but proposal, plan and option; `strict`: none that was"
            " stopped, and of the intents only instance-order."
        ),
    )
    request_start: Literal["bounds", "authored"] = _option(
        "bounds",
        "MedicationRequest",
        description=(
            "Start of an order: `bounds` is the first usable of the start of the dosage's bounds, authoredOn and the"
            " encounter's start (the guide); `authored` the first usable of authoredOn, the bounds and the encounter"
            " (Themis: the day on which it was ordered)."
        ),
    )
    on_hold_medication_requests: Literal["exclude", "keep"] = _option(
        "exclude", "MedicationRequest", description="MedicationRequests of status `on-hold`: no row, or rows."
    )
    inpatient_medication_requests: Literal["keep", "exclude"] = _option(
        "keep",
        "MedicationRequest",
        description=(
            "Inpatient orders: rows of type 32833, or no rows; `exclude` is for sites that export"
            " MedicationAdministration, where an order and what was given would be counted twice."
        ),
    )
    device_start: Literal["use", "manufacture_date"] = _option(
        "use",
        "DeviceUseStatement",
        description=(
            "Start of a device exposure whose use has no date: `use` rejects it; `manufacture_date` takes the device's"
            " date of manufacture and flags the row (issue `start_is_manufacture_date`)."
        ),
    )
    device_alone: Literal["exclude", "manufacture_date"] = _option(
        "exclude",
        "Device",
        description=(
            "A Device that names its patient: `exclude` makes no row of it (`device_not_use`), because nothing says"
            " when it was used; `manufacture_date` makes it an exposure from that date and flags the row (issue"
            " `start_is_manufacture_date`). For sites without DeviceUseStatement: a use would be a second row."
        ),
    )
    notes: Literal["off", "on"] = _option(
        "off",
        "DocumentReference",
        "DiagnosticReport",
        "Observation",
        "Binary",
        description=(
            "Texts of documents and reports in `note`: `off` excludes documents (`note_text_off`) and leaves the texts"
            " of reports out; `on` loads them. They are free text and hold what identifies patients: `on` is for"
            " warehouses whose legal basis covers that (f2o-022, f2o-132)."
        ),
    )

    implausible_dates: Literal["keep", "exclude"] = _option(
        "keep",
        *_DATED,
        description=(
            'Dates before 1850 or after the year that follows the export\'s, and dates that stand for "unknown" (births'
            " on 1900-01-01, events at 1970-01-01T00:00Z): `keep` loads them where the resource has no better one, with"
            " an issue; `exclude` excludes the resource whose own date is such (`date_implausible`), leaves out a further"
            " row of it, and takes an end like that for none."
        ),
    )

    @field_validator("notes", "negative_values", "plausibility", "standard_units", mode="before")
    @classmethod
    def _switch(cls, value: object) -> object:
        """YAML 1.1 reads `off` and `on` as booleans."""
        return {False: "off", True: "on"}[value] if isinstance(value, bool) else value

    def applies_duplicates(self, resource_type: str) -> bool:
        """Whether rows of a resource type may be left out because another resource says the same."""
        return self.duplicates == "apply" and resource_type in _REPEATED

    def of(self, resource_type: str) -> Mapping[str, str]:
        """The options that change rows of a resource type, and their values: a part of its fingerprint."""
        return {
            name: getattr(self, name)
            for name, field in type(self).model_fields.items()
            if resource_type in resources_of(field)
        }


def resources_of(field: FieldInfo) -> list[str]:
    """The resource types whose rows an option changes."""
    extra = field.json_schema_extra
    found = extra.get("resources") if isinstance(extra, dict) else None
    return [str(name) for name in found] if isinstance(found, list) else []
