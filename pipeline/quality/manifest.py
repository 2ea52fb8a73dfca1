"""What the transformation reads and fills, for machines (f2o-003, f2o-122): made from the mappings themselves.

A table is `full` where every column of the CDM can be filled from what is exported, `partial` where some can, `none`
where nothing fills it. "Can": a mapping or a rule has the column; whether a source has the element is another matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from omop_schema.cdm import CDM_TABLES, fields, polars_schema, primary_key
from omop_schema.versions import DEFAULT_CDM_VERSION, IG_VERSION, CdmVersion
from pipeline.quality.fixed_maps import FIXED_MAPS_RELEASE, origin_of
from pipeline.transform.mapping.mappings import Mappings, ResourceMapping, ViewMapping
from pipeline.transform.routing import DOMAIN_TABLES, EVENT_COLUMNS
from pipeline.transform.rules import RULES

__all__ = ["USE_CASES", "manifest"]

FHIR_VERSION = "4.0.1"
USE_CASES = (
    "population-scale research data from bulk exports of an electronic health record",
    "nightly refresh of an OMOP instance from full exports",
    "studies across sites by the OHDSI methods library",
)
#: What the guide's own maps are made for; every other resource of the type is taken as well.
_US_CORE = "http://hl7.org/fhir/us/core/StructureDefinition/us-core-"
_PROFILES = {
    "AllergyIntolerance": ("allergyintolerance",),
    "Condition": ("condition-encounter-diagnosis", "condition-problems-health-concerns"),
    "Coverage": ("coverage",),
    "Device": ("implantable-device",),
    "DiagnosticReport": ("diagnosticreport-lab", "diagnosticreport-note"),
    "DocumentReference": ("documentreference",),
    "Encounter": ("encounter",),
    "Immunization": ("immunization",),
    "Location": ("location",),
    "Medication": ("medication",),
    "MedicationDispense": ("medicationdispense",),
    "MedicationRequest": ("medicationrequest",),
    "Observation": (
        "observation-lab",
        "observation-clinical-result",
        "vital-signs",
        "simple-observation",
        "smokingstatus",
    ),
    "Organization": ("organization",),
    "Patient": ("patient",),
    "Practitioner": ("practitioner",),
    "PractitionerRole": ("practitionerrole",),
    "Procedure": ("procedure",),
    "QuestionnaireResponse": ("questionnaireresponse",),
    "Specimen": ("specimen",),
}
#: Filled by publication from rows of other tables (docs/derived-tables.md), and those of the instance itself.
_DERIVED = {
    "observation_period": "visits and dated events",
    "condition_era": "condition_occurrence",
    "drug_era": "drug_exposure",
    "dose_era": "drug_exposure",
    "cdm_source": "the instance",
    "metadata": "the runs and sites",
}
#: The same for a part of what a table may hold.
_DERIVED_PARTLY = {"fact_relationship": "partOf of Organization and Location: care sites only"}
#: Columns that publication fills, because they depend on other resources.
_LINKED = {
    *("preceding_visit_occurrence_id", "preceding_visit_detail_id", "visit_detail_id", "parent_visit_detail_id"),
    *("observation_event_id", "obs_event_field_concept_id", "note_event_id", "note_event_field_concept_id"),
    *("measurement_event_id", "meas_event_field_concept_id"),
}
_OF_EVERY_EVENT = {"concept_id", "source_concept_id", "source_value", "type_concept_id", "value_as_concept_id"}


def manifest(
    mappings: Mappings, site: str | None = None, cdm_version: CdmVersion = DEFAULT_CDM_VERSION
) -> dict[str, Any]:
    """The manifest as JSON's own types, in a stable order."""
    return {
        "manifest_version": 1,
        "software": {"name": "epic-omop", "version": version("epic-omop")},
        "guide": {"name": "HL7 FHIR to OMOP", "version": IG_VERSION},
        "site": site,
        "input": {
            "fhir_version": FHIR_VERSION,
            "forms": [
                "application/fhir+ndjson",
                "application/fhir+json",
            ],
            "resources": [_resource(mapping) for _, mapping in sorted(mappings.resources.items())],
            "excluded_types": dict(sorted(mappings.unmapped_types.items())),
            "code_systems": dict(sorted(mappings.code_systems.items())),
        },
        "use_cases": list(USE_CASES),
        "options": mappings.options.model_dump(),
        "output": {
            "cdm_version": cdm_version.label,
            "vocabulary_release": "recorded for each run in etl.publication and cdm_source",
            "fixed_maps": {
                "written_for_vocabulary_release": FIXED_MAPS_RELEASE,
                "maps": {name: origin_of(name) for name in sorted(mappings.value_maps)},
            },
            "tables": {table: _table(table, mappings, cdm_version) for table in sorted(CDM_TABLES)},
        },
    }


def _resource(mapping: ResourceMapping) -> dict[str, Any]:
    name = mapping.resource
    found: dict[str, Any] = {
        "type": name,
        "profiles": [
            f"http://hl7.org/fhir/StructureDefinition/{name}",
            *(f"{_US_CORE}{profile}" for profile in _PROFILES.get(name, ())),
        ],
        "tables": sorted({table for view in mapping.views for table in _tables(view)}),
    }
    if any(view.kind == "event" for view in mapping.views):
        found["tables_by_domain"] = sorted(set(DOMAIN_TABLES.values()) - set(found["tables"]))
    if mapping.status:
        found["status_kept"] = list(mapping.status.keep)
    return found


def _tables(view: ViewMapping) -> Iterator[str]:
    """Tables that a view fills whatever the concept is."""
    if view.kind == "entity" and view.table:
        yield view.table
    elif view.kind == "event":
        yield from (rule.table for rule in view.home_table)
    elif view.kind == "resource" and "location_id" in view.column_types:
        yield "location"


def _table(table: str, mappings: Mappings, cdm_version: CdmVersion) -> dict[str, Any]:
    if table in _DERIVED_PARTLY:
        return {"populated": "partial", "derived_from": _DERIVED_PARTLY[table]}
    if table in _DERIVED:
        return {"populated": "full", "derived_from": _DERIVED[table]}
    filled: set[str] = set()
    sources = set()
    for name, mapping in mappings.resources.items():
        if any(table in _tables(view) for view in mapping.views):
            sources.add(name)
        for view in mapping.views:
            filled |= _filled(table, mapping, view)
    columns = [
        field.name for field in fields(table, cdm_version) if field.name != primary_key(table) or table == "person"
    ]
    missing = [name for name in columns if name not in filled]
    is_event_table = table in DOMAIN_TABLES.values()
    if not sources and not is_event_table:
        return {"populated": "none"}
    found: dict[str, Any] = {"populated": "partial" if missing else "full", "from": sorted(sources)}
    if is_event_table:
        found["from_others_by_domain"] = True
    return {**found, "columns_left_empty": missing} if missing else found


def _filled(table: str, mapping: ResourceMapping, view: ViewMapping) -> set[str]:
    """Columns of a table that the rows of one view can fill."""
    columns = set(mapping.resource_view.column_types) | set(view.column_types)
    columns.update(*(RULES[name].writes for name in view.derive))
    if view.kind == "event" and table in EVENT_COLUMNS:
        roles = EVENT_COLUMNS[table]
        known = columns | _OF_EVERY_EVENT
        if table == "device_exposure" and "quantity" in columns:  # of a drug that is a device (`routing.to_table`)
            known |= {"whole_quantity"}
        return {name for name, role in roles.items() if role in known} | _LINKED
    if view.kind == "entity" and view.table == table:
        own = set(polars_schema(table))
        return own & columns | _LINKED | {"person_id"}
    if table == "location" and table in _tables(view):
        return {"location_id", "country_concept_id"} | _of_locations()
    return set()


def _of_locations() -> set[str]:
    from pipeline.transform.addresses import Addresses

    return set(Addresses().frame().columns)
