"""Named settings of the mapping: where sources contradict each other, or a site may want what the guide says.

Each option has a default, which is the mapping specification's choice, and is documented in docs/mapping-options.md.
`sites.yaml` sets them under `mapping:` of a site. Rules of a mapping name the option under which they hold
(`option: {preliminary_results: keep}`); derive functions read them from `Derivation.options`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

__all__ = ["MappingOptions"]


def _option(default: str, *resources: str, description: str) -> Any:
    """An option of the mapping: its default, the resource types whose rows it changes, and what each value does."""
    return Field(default=default, description=description, json_schema_extra={"resources": list(resources)})


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
            "observation_type_concept_id: `specific` tells laboratory, survey, exam and patient-reported apart"
            " (f2o-051); `general` is 32817 (EHR) for all."
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
