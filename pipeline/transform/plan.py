"""What a transform worker is given, and what it makes of it once: compiled views, converters, resolver.

A `TransformPlan` is small and picklable (settings and mappings); a `Worker` is built from it in each process and lives
as long as the process, so that views are compiled and concepts resolved once. What it reads and writes apart from the
lines are its ports (`pipeline.transform.ports`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from functools import cache, cached_property, partial
from typing import Any

import orjson
import polars as pl

from pipeline.fhir.identity import SurrogateKeys, parse_reference
from pipeline.sql_on_fhir.view_definition import (
    EVALUATION_ERRORS,
    Append,
    Column,
    CompiledColumns,
    Converter,
    OfCollection,
    Problem,
    compile_columns,
    compile_together,
)
from pipeline.staging.schemas import CODE_SET, SCHEMAS
from pipeline.transform import converters, dosages, note_texts, specialties, udi
from pipeline.transform.addresses import COUNTRIES, Addresses, is_home
from pipeline.transform.column_types import column_dtype
from pipeline.transform.concepts.answers import asked_sets
from pipeline.transform.concepts.code_sets import CodeSets
from pipeline.transform.concepts.index import ConceptIndex
from pipeline.transform.concepts.look_ups import LookUps
from pipeline.transform.concepts.resolver import ConceptLookup, ConceptResolver
from pipeline.transform.identifiers import IDENTIFIED_TYPES, IdentifierKeys, identifier_keys
from pipeline.transform.mapping.mappings import Mappings, ResourceMapping, ViewMapping
from pipeline.transform.mapping.systems import SystemNames
from pipeline.transform.mapping.targets import Target, standard_of_targets
from pipeline.transform.participants import visit_provider
from pipeline.transform.ports import Ports
from pipeline.transform.references import PROVIDER, TARGETS, VISIT_PROVIDER, ReferenceReader
from pipeline.transform.reporters import REPORTERS, is_reported_by_patient
from pipeline.transform.rules import Derivation
from pipeline.transform.value_checks import ValueChecks

__all__ = ["PlannedView", "ResourcePlan", "SiteMapping", "TransformPlan", "Worker", "resolver_of"]

_VALUE_MAP_SCHEMA = {
    "system": pl.String,
    "code": pl.String,
    "within": pl.String,
    "concept_id": pl.Int64,
    "exclude_reason": pl.String,
    "meaning": pl.String,
    #: the map says on purpose that there is no concept
    "by_rule": pl.Boolean,
}
#: Code sets kept before a worker forgets them between chunks: bounds its memory.
_CODE_SET_LIMIT = 400_000


@dataclass(frozen=True)
class SiteMapping:
    """What decides a site's rows beside its mappings."""

    name: str
    #: IANA name
    time_zone: str
    #: types of which a text may stand as source value
    text_source_value_types: tuple[str, ...]
    #: longer lines become dead letters
    max_line_bytes: int


@dataclass(frozen=True)
class TransformPlan:
    """Everything that decides rows apart from lines and facts."""

    site: SiteMapping
    instance_zone: str
    surrogate_salt: str
    #: under which identifiers are compared (`pipeline.core.identifier_secret`)
    identifier_secret: bytes = field(repr=False)
    as_of: date
    mappings: Mappings
    index: ConceptIndex
    #: concept id of the mappings → concept id of the loaded vocabulary (0: missing)
    fixed: Mapping[int, int]


@dataclass(frozen=True)
class PlannedView:
    mapping: ViewMapping
    columns: tuple[Column, ...]
    dtypes: tuple[pl.DataType, ...]
    #: what is wrong with a resource, slowly
    explain: Callable[[Any], Problem | None]
    #: the view by itself, for a resource of which another view fails
    alone: Callable[[], CompiledColumns]


@dataclass(frozen=True)
class ResourcePlan:
    mapping: ResourceMapping
    views: tuple[PlannedView, ...]
    #: all views in one function (`pipeline.sql_on_fhir.view_definition.CompiledViews`)
    bind: Callable[[Sequence[list[Any]]], Append]


def resolver_of(mappings: Mappings, sets: CodeSets, index: ConceptLookup) -> ConceptResolver:
    """Resolves code sets by a site's mappings. What it is given here is in `rules_hash` (`pipeline.load.fingerprints`)."""
    return ConceptResolver(
        sets,
        index,
        mappings.code_systems,
        mappings.vocabulary_priority,
        mappings.unit_aliases,
        mappings.code_forms,
        mappings.fall_backs,
    )


class Worker:
    """One process's compiled mappings and caches. Not thread-safe."""

    def __init__(self, plan: TransformPlan, ports: Ports) -> None:
        self.plan = plan
        self.ports = ports
        self.keys = SurrogateKeys(plan.site.name, plan.surrogate_salt)
        self.identifiers = IdentifierKeys(plan.site.name, plan.identifier_secret)
        self.references = ReferenceReader(self.keys, self.identifiers)
        countries = {country.code for country in plan.mappings.value_maps.get(COUNTRIES, ())}
        keeps_foreign = plan.mappings.options.foreign_postal_codes == "keep"
        self.addresses = Addresses(countries, keeps_foreign_codes=keeps_foreign)
        #: code sets that were noted, as hashes
        self._noted: set[int] = set()
        self._reset_code_sets()

    def _reset_code_sets(self) -> None:
        self.sets = CodeSets(self.systems.canonical)
        self.resolver = resolver_of(self.plan.mappings, self.sets, self.plan.index)
        self._noted_until = 0
        self._plans: dict[str, ResourcePlan] = {}
        self.derivation = Derivation(
            site_zone=self.plan.site.time_zone,
            instance_zone=self.plan.instance_zone,
            as_of=self.plan.as_of,
            options=self.plan.mappings.options,
            fixed=self.fixed,
            constants=self.plan.mappings.constants,
            look_ups=LookUps(self.value_maps, self.sets, self.resolver, self.plan.index.concepts),
            facts=self.ports.facts.of,
            strengths=self.plan.index.strengths,
            text_types=self.plan.site.text_source_value_types,
            binary_texts=self.binary_texts,
        )

    def bound_memory(self) -> None:
        """Forget code sets when there are very many (texts that differ on every line)."""
        if len(self.sets) > _CODE_SET_LIMIT:
            self._reset_code_sets()

    def note_code_sets(self) -> pl.DataFrame:
        """The code sets that are new since the last time, each once a process (`pipeline.transform.concepts.answers`)."""
        new = []
        for asked in asked_sets(self.sets, self._noted_until):
            if (key := hash(asked)) not in self._noted:
                self._noted.add(key)
                new.append(asked)
        self._noted_until = len(self.sets)
        return pl.DataFrame({"asked": new}, schema=SCHEMAS[CODE_SET])

    def fixed(self, concept_ids: tuple[int, ...]) -> int:
        """The first of the alternatives that the loaded vocabulary has, else 0."""
        return next((found for found in (self.plan.fixed.get(given, 0) for given in concept_ids) if found), 0)

    @property
    def systems(self) -> SystemNames:
        return self.plan.mappings.systems

    @cached_property
    def value_maps(self) -> dict[str, pl.DataFrame]:
        return {
            name: pl.DataFrame(
                {
                    "system": [entry.system for entry in entries],
                    "code": [entry.code for entry in entries],
                    "within": [entry.within for entry in entries],
                    "concept_id": [self.target(entry.targets) for entry in entries],
                    "exclude_reason": [entry.exclude_reason for entry in entries],
                    "meaning": [entry.meaning for entry in entries],
                    "by_rule": [not any(entry.targets) for entry in entries],
                },
                schema=_VALUE_MAP_SCHEMA,
            )
            for name, entries in self.plan.mappings.value_maps.items()
        }

    def target(self, targets: tuple[Target, ...]) -> int:
        """The first of the alternatives, ids or codes, that the loaded vocabulary has, else 0."""
        found = (self.plan.fixed.get(given) if isinstance(given, int) else self._coded.get(given) for given in targets)
        return next((concept_id for concept_id in found if concept_id), 0)

    @cached_property
    def _coded(self) -> dict[str, int]:
        """`VOCABULARY:code` and `VOCABULARY=name` of the mappings → their standard concepts."""
        return standard_of_targets(self.plan.mappings.coded_concepts, self.plan.index, self.plan.mappings.code_forms)

    @cached_property
    def fixed_domains(self) -> dict[int, str]:
        """Domain of every concept that the mappings name and the vocabulary has."""
        named = {*self.plan.fixed.values(), *self._coded.values()} - {0}
        rows = self.plan.index.concepts(sorted(named))
        return dict(rows.select("concept_id", "domain_id").iter_rows())

    @cached_property
    def value_checks(self) -> ValueChecks:
        """The mappings' rules about numbers, by the concepts of the loaded vocabulary."""
        mappings = self.plan.mappings
        return ValueChecks.of(mappings.limits, mappings.conversions, mappings.options, self._coded)

    def binary_texts(self, places: pl.Series) -> dict[str, str]:
        """Texts of Binaries by the places of their lines; a Binary that is missing, or has none, is left out."""
        found: dict[str, str] = {}
        for place, raw in self.ports.binaries.read(places):
            with suppress(*EVALUATION_ERRORS):  # a document whose Binary cannot be read has no text, and says so
                if text := note_texts.binary_text(orjson.loads(raw)):
                    found[place] = text
        return found

    def resource_plan(self, resource_type: str) -> ResourcePlan | None:
        """The compiled mapping of a type, None for a type without one."""
        if resource_type not in self._plans:
            mapping = self.plan.mappings.resources.get(resource_type)
            if mapping is None:
                return None
            self._plans[resource_type] = _planned(mapping, self._converters())
        return self._plans[resource_type]

    @property
    def column_types(self) -> frozenset[str]:
        """The types of columns that are converted here, beside FHIR's own: those of `column_types.CONVERTED_TYPES`."""
        return frozenset(self._converters())

    def _concept_as_json(self, value: Any) -> str:
        """A CodeableConcept as text for other resources; its shape is checked here, where its own line is rejected."""
        self.sets.add_concept(value)
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS, default=float).decode()

    def _device_as_json(self, device: dict[str, Any]) -> str:
        """What an exposure takes from its device, as text; the code's shape is checked here."""
        summary = udi.device_summary(device)
        if summary["code"]:
            self.sets.add_concept(summary["code"])
        return orjson.dumps(summary, option=orjson.OPT_SORT_KEYS).decode()

    def _contained_device(self, statement: dict[str, Any]) -> str | None:
        device = udi.contained_device(statement)
        return self._device_as_json(device) if device else None

    def _contained_device_code(self, statement: dict[str, Any]) -> int | None:
        device = udi.contained_device(statement)
        return self.sets.add_concept(device["type"]) if device and device.get("type") else None

    def _attached_binary(self, resource: dict[str, Any]) -> int | None:
        reference = note_texts.attachment_in_binary(resource)
        parsed = parse_reference(reference["reference"]) if reference else None
        return self.keys.of(*parsed) if parsed else None

    def _converters(self) -> dict[str, Converter]:
        by_type: dict[str, Converter] = {
            "CodeableConcept": self.sets.add_concept,
            "Coding": self.sets.add_coding,
            "Quantity": self.sets.add_quantity,
            "medication_code": converters.medication_code(self.sets),
            "lacks_contained_medication": converters.lacks_contained_medication(self.sets),
            "lacks_contained_device": udi.lacks_contained_device,
            "merged_types": converters.merged_types(self.sets),
            "other_category": converters.other_category(self.sets),
            "patient_location": self.addresses.of_patient,
            "site_location": self.addresses.of_site,
            "is_home": is_home,
            "other_value": converters.other_value,
            "comparator": converters.comparator,
            "is_not_on_file": converters.is_not_on_file,
            "verification_status": converters.status_code(converters.VERIFICATION_STATUSES),
            "clinical_status": converters.status_code(converters.CLINICAL_STATUSES),
            "physical_type": converters.physical_type,
            "integer32": converters.integer32,
            "period_text": converters.period_text,
            "age_text": converters.age_text,
            "usable_event": OfCollection(converters.usable_event),
            "unusable_event": OfCollection(converters.unusable_event),
            "quantity_text": converters.quantity_text,
            "json": self._concept_as_json,
            "role_specialty": specialties.of_role(self.systems.canonical, self._concept_as_json),
            "provider_taxonomy": OfCollection(specialties.by_taxonomy(self.systems.canonical, self.sets.add_concept)),
            "npi": OfCollection(specialties.npi(self.systems.canonical)),
            "attached_text": note_texts.attached_text,
            "attached_binary": self._attached_binary,
            "is_unsupported": note_texts.is_unsupported,
            "text_language": note_texts.text_language,
            "device_identifier": udi.device_identifier,
            "device_lot": udi.device_lot,
            "device_summary": self._device_as_json,
            "contained_device": self._contained_device,
            "contained_device_code": self._contained_device_code,
            "canonical": converters.canonical,
            "canonical_key": converters.canonical_key(self.keys),
            "questionnaire_codes": converters.questionnaire_codes,
            "item_code": converters.item_code,
        }
        return {**by_type, **dosages.column_converters(self.sets), **self._reference_converters()}

    def _reference_converters(self) -> dict[str, Converter]:
        by_type: dict[str, Converter] = {}
        for name, target in TARGETS.items():
            by_type[f"Reference({name})"] = self.references.one(target)
        provider = self.references.first(TARGETS["Practitioner"])
        by_type[PROVIDER] = OfCollection(provider)
        by_type[VISIT_PROVIDER] = visit_provider(provider, self.plan.site.time_zone)
        for name, elements in REPORTERS.items():
            by_type[name] = is_reported_by_patient(*elements)
        for name in IDENTIFIED_TYPES:
            by_type[f"identifier({name})"] = identifier_keys(self.identifiers, name, any_system=False)
            by_type[f"identifier_value({name})"] = identifier_keys(self.identifiers, name, any_system=True)
        return by_type


def _planned(mapping: ResourceMapping, converters: Mapping[str, Converter]) -> ResourcePlan:
    compiled = compile_together([dict(view.definition) for view in mapping.views], converters, is_strict=True)
    views = tuple(
        PlannedView(
            view,
            columns,
            tuple(column_dtype(column.type, collection=column.collection) for column in columns),
            explain,
            cache(partial(compile_columns, dict(view.definition), converters, is_strict=True)),
        )
        for view, columns, explain in zip(mapping.views, compiled.columns, compiled.explains, strict=True)
    )
    return ResourcePlan(mapping, views, compiled.bind)
