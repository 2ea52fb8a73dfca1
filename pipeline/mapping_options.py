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
        description=(
            "The own row of an Observation with components: `with_value` makes it only where the panel itself has a"
            " value; `always` makes it in any case."
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
