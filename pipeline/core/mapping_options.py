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
_MEASURED = ("DiagnosticReport", "Observation", "QuestionnaireResponse")


#: Resources of which one fact may come twice.
_REPEATED = ("Condition", "Procedure")


class MappingOptions(BaseModel):
    """The options of one site. The description of a field says what each value does."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    preliminary_results: Literal["exclude", "keep"] = _option(
        "exclude",
        "DiagnosticReport",
        "Observation",
        description="Observations of status `preliminary`: no row, or rows like final ones.",
    )
    observation_type: Literal["specific", "general"] = _option(
        "specific",
        "DiagnosticReport",
        "Observation",
        description=(
            "observation_type_concept_id: `specific` distinguishes laboratory, survey, exam and patient-reported"
            " (f2o-051); `general` is 32817 (EHR) for all."
        ),
    )
    data_absent: Literal["row", "exclude"] = _option(
        "row",
        "DiagnosticReport",
        "Observation",
        description=(
            "An Observation or component that has a dataAbsentReason instead of a value: `row` is a row whose value is"
            " NULL (Themis: the test was done); `exclude` makes none, as the guide says, and counts it as `data_absent`."
        ),
    )
    panel_row: Literal["with_value", "always"] = _option(
        "with_value",
        "DiagnosticReport",
        "Observation",
        description=(
            "The own row of an Observation with components or members, and of a DiagnosticReport with results:"
            " `with_value` makes it only where the panel itself has a value (else `panel_without_value`); `always`"
            " makes it in any case, and components, members and results carry its id in measurement_event_id or"
            " observation_event_id."
        ),
    )
    unmapped_results: Literal["measurement", "observation"] = _option(
        "measurement",
        "DiagnosticReport",
        "Observation",
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
            " unit_source_value stay as in the source; `off` looks at none."
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
            " crosswalk calls `meaning:died`): `ignore`, or `death` for a death on the last day of the stay, which counts"
            " before other dates of death (Themis); of several the latest."
        ),
    )
    persons_without_gender: Literal["keep", "exclude"] = _option(
        "keep",
        "Patient",
        description=(
            "Patients of whom neither the sex at birth nor the gender is known (absent, unknown, not asked): `keep` loads"
            " them with gender_concept_id 0; `exclude` leaves them out with all their data (`gender_missing`), and"
            " `metadata` counts them (Themis). A gender that is `other` is known."
        ),
    )
    impossible_birth_years: Literal["keep", "exclude"] = _option(
        "keep",
        "Patient",
        description=(
            "Patients born before 1850 or in a year after the export's: `keep` loads them with an issue where the year is"
            " out of range; `exclude` leaves them out with all their data (`birth_year_impossible`), and `metadata`"
            " counts them (Themis)."
        ),
    )
    unknown_birth_day: Literal["empty", "imputed"] = _option(
        "empty",
        "Patient",
        description=(
            "month_of_birth and day_of_birth that the source does not give: `empty`, or `imputed` (Themis, for uses that"
            " need them): of a month its first day; of a year those of the earliest record in it, else 15 June."
        ),
    )
    foreign_postal_codes: Literal["drop", "keep"] = _option(
        "drop",
        "Patient",
        description=(
            "Postal codes of patients outside the United States: `drop`, because nobody says how many people share one;"
            " `keep` loads them whole, up to nine characters, where the address names a country that is not the United"
            " States. Those of sites are always loaded."
        ),
    )
    place_of_service: Literal["source", "visits"] = _option(
        "source",
        "Location",
        "Organization",
        description=(
            "place_of_service_concept_id of a care site: `source` is what its types say, and where it has none the setting"
            " of most of its visits; `visits` is that of most of its visits whatever its types say (Themis)."
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
            "Inpatient orders: rows of type 32833, or no rows. `exclude` is for sites that export"
            " MedicationAdministration and whose administrations do not name their orders: where they do,"
            " `double_counting` lets each exposure count once."
        ),
    )
    double_counting: Literal["linked", "keep", "overlap"] = _option(
        "linked",
        "MedicationRequest",
        "MedicationDispense",
        "MedicationAdministration",
        description=(
            "One exposure in several records. `linked`: of records of one order, which name each other"
            " (`MedicationAdministration.request`, `MedicationDispense.authorizingPrescription`), the most definite ones"
            " count: administrations before dispenses before the request; the others are excluded as"
            " `counted_elsewhere`. `keep`: all have their rows. `overlap`: as `linked`, and of records of one encounter"
            " also those that overlap a more definite one of the same patient and ingredient by a day, whatever they name."
        ),
    )
    long_supply: Literal["leave_out", "keep"] = _option(
        "leave_out",
        "MedicationRequest",
        "MedicationDispense",
        description=(
            "A supply, or a quantity by daily dose, of more than 365 days: `leave_out` takes it for an error, which would"
            " make long eras (Themis #76): no days_supply, an end by what comes next in the order, an issue"
            " (`days_supply_implausible`); `keep` takes it up to ten years."
        ),
    )
    assumed_daily_dose: Literal["none", "one_piece"] = _option(
        "none",
        "MedicationRequest",
        "MedicationDispense",
        description=(
            "Tablets, capsules and other solid pieces without a daily dose: `none` assumes none; `one_piece` takes one a"
            " day, which Themis allows (#57), so that 30 tablets end after 30 days. days_supply stays NULL."
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
            " `start_is_manufacture_date`), unless a DeviceUseStatement or a Procedure (`focalDevice`) names it: that"
            " is the exposure then."
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
