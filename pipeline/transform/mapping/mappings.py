"""Mappings are data: `mappings/*.yaml` and `mappings/concept_maps/*` → checked, typed objects.

One YAML file a resource: a list of SQL on FHIR views whose columns carry OMOP names, and around them the rules that
the specification gives: home table, type concept, status filter, required columns. Here is what they mean; how the
files are read, and a site's laid over them, is in `sources`. Nothing is run here: `mapping_check` looks at
what only running would show. Everything wrong is a MappingError with file and, where known, line.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeGuard, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipeline.core.mapping_options import MappingOptions
from pipeline.transform.concepts.code_forms import NO_FORMS, CodeForms
from pipeline.transform.concepts.index import unit_key
from pipeline.transform.mapping.code_tables import FallBack, aliases, code_forms, code_systems, fall_backs
from pipeline.transform.mapping.duplicate_rules import DuplicateRule, duplicate_rules
from pipeline.transform.mapping.sources import (
    MappingProblem,
    Row,
    Sources,
    content_digest,
    line_of,
    node_at,
    plain,
    read_sources,
    stamp_problems,
)
from pipeline.transform.mapping.systems import SystemNames
from pipeline.transform.mapping.targets import Target, parted_target
from pipeline.transform.mapping.value_rules import Conversion, Limit, unit_concept, value_rules
from pipeline.transform.rules import RULES

__all__ = [
    "ITEM_NUMBER",
    "MAPS_OF_TYPES",
    "ConceptRule",
    "Exclusion",
    "MappingReading",
    "Mappings",
    "ResourceMapping",
    "StatusFilter",
    "TableRule",
    "ValueMapEntry",
    "ViewMapping",
    "fixed_concepts",
    "has_numbers",
    "load_mappings",
    "read_mappings",
]

#: Names of the value maps' special targets: the row is excluded instead of given a concept.
EXCLUDE = "exclude"
#: … or its code means something that a rule knows.
MEANING = "meaning"

_Rule = TypeVar("_Rule", bound="_Optional")

_KIND = Literal["resource", "event", "entity", "fact"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Optional(_Model):
    """A rule that holds only where each named option (pipeline/core/mapping_options.py) has the value, or one of them."""

    option: Mapping[str, str | tuple[str, ...]] = Field(
        default_factory=dict,
        description="Named options of the site, each with the value, or values, under which the entry holds.",
    )

    @field_validator("option")
    @classmethod
    def _known(cls, value: Mapping[str, str | tuple[str, ...]]) -> Mapping[str, str | tuple[str, ...]]:
        for name, required in value.items():
            field = MappingOptions.model_fields.get(name)
            if field is None:
                raise ValueError(f"there is no option {name!r}")
            for choice in _choices(required):
                if choice not in get_args(field.annotation):
                    raise ValueError(f"option {name!r} has no value {choice!r}")
        return value

    def holds(self, options: MappingOptions) -> bool:
        return all(getattr(options, name) in _choices(required) for name, required in self.option.items())


def _choices(required: str | tuple[str, ...]) -> tuple[str, ...]:
    return (required,) if isinstance(required, str) else required


class TableRule(_Optional):
    """Home table of rows for which the boolean column `when` is true; without `when`, of all others."""

    table: str = Field(description="An event table.")
    when: str | None = Field(None, description="A boolean column. Without it the entry holds for all other rows.")


class ConceptRule(_Optional):
    """Concept of rows for which the boolean column `when` is true; alternatives are tried in order."""

    concept_id: Target | tuple[Target, ...] = Field(
        description="A concept id, `VOCABULARY:code` for the standard concept of a code, or `VOCABULARY=name` for that of a "
        "name; of a list the first that the vocabulary has."
    )
    when: str | None = Field(None, description="A boolean column. Without it the entry holds for all other rows.")
    has_value: bool = Field(
        False,
        description="Only concepts whose table can hold a value count: the value says what they are about.",
    )

    @property
    def targets(self) -> tuple[Target, ...]:
        return self.concept_id if isinstance(self.concept_id, tuple) else (self.concept_id,)

    @property
    def concept_ids(self) -> tuple[int, ...]:
        return tuple(target for target in self.targets if isinstance(target, int))


class StatusVariant(_Optional):
    """Values that an option keeps or excludes instead."""

    keep: tuple[str, ...] = Field((), description="Values that are kept under the option.")
    exclude: Mapping[str, str] = Field(
        default_factory=dict, description="Values that are excluded under it: value → reason."
    )


class StatusFilter(_Model):
    """Outcome by the value of a column of the resource view: kept, excluded with a reason, else rejected."""

    column: str = Field(description="Column of the first view.")
    keep: tuple[str, ...] = Field(description="Values that are kept.")
    exclude: Mapping[str, str] = Field(default_factory=dict, description="Value → reason by which it is excluded.")
    missing: Literal["reject", "keep", "exclude"] = Field(
        "reject",
        description="What happens to a resource without the element; `exclude` has the reason `status_missing`.",
    )
    variants: tuple[StatusVariant, ...] = Field((), description="Changes of `keep` and `exclude` under options.")

    def under(self, options: MappingOptions) -> StatusFilter:
        """The filter with the variants that hold worked in."""
        keep, exclude = list(self.keep), dict(self.exclude)
        for variant in self.variants:
            if variant.holds(options):
                exclude = {name: reason for name, reason in exclude.items() if name not in variant.keep}
                keep = [name for name in keep if name not in variant.exclude] + list(variant.keep)
                exclude |= variant.exclude
        return self.model_copy(update={"keep": tuple(keep), "exclude": exclude, "variants": ()})


class Exclusion(_Optional):
    """Resources for which the boolean column `when` is true are excluded with `reason`."""

    when: str = Field(description="A boolean column of the first view.")
    reason: str = Field(description="Counted in `etl.exclusion`.")


class ViewMapping(_Optional):
    """One view of a mapping. `definition` is the ViewDefinition itself, without the keys of this project."""

    name: str = Field(description="Of its own in the file, unless options choose between two forms of a view.")
    kind: _KIND = Field(
        description="`resource`: one row a resource, for the others to use; the first view. `event`: coded rows, whose table "
        "the concept's domain decides. `entity`: rows of `table` itself. `fact`: a value for other resources' rows."
    )
    definition: Mapping[str, Any] = Field(
        description="The ViewDefinition: all keys of the view that are not in this table."
    )
    table: str | None = Field(
        None,
        description="entity: the CDM table whose rows the resource is. event: the table of all its rows, whatever their "
        "domain.",
    )
    row_key: tuple[str, ...] = Field((), description="entity: columns that distinguish several rows of a resource.")
    home_table: tuple[TableRule, ...] = Field((), description="event: where unmapped rows go; the first that holds.")
    code: str | None = Field(
        None, description="event: column of type CodeableConcept or Coding that has the codes; or `concept_id`."
    )
    event_of: str | tuple[str, ...] = Field(
        (),
        description="event: the view whose row of the same resource its rows belong to (`observation_event_id`); of several "
        "views that exclude each other, the one that has a row.",
    )
    result_concept_id: tuple[ConceptRule, ...] = Field(
        (),
        description="event: concept of one more row, in observation, for the value of a row whose table holds none; it "
        "belongs to that row.",
    )
    concept_id: tuple[ConceptRule, ...] = Field(
        (), description="event: fixed concepts instead of a code; the first that holds."
    )
    priority: str | None = Field(
        None, description="event: key of `vocabulary_priority.yaml`: which of several codings counts."
    )
    type_concept_id: tuple[ConceptRule, ...] = Field(
        (), description="event: where the record comes from (domain Type Concept); the first that holds."
    )
    derive: tuple[str, ...] = Field((), description="[Rules](#rules), applied in this order.")
    row: Literal["own", "further"] | None = Field(
        None,
        description="event, entity: `own` is the row that decides about the resource: where it cannot be made, the resource "
        "is rejected. A `further` row that cannot be made is left out, with an issue.",
    )
    required: tuple[str, ...] = Field((), description="Columns without which a row cannot be made.")
    fact: str | None = Field(None, description="fact: its name, by which rules ask for it.")
    landed_line: bool = Field(
        False, description="fact: the value is where the resource's line landed; large content is read there."
    )
    of_excluded: bool = Field(
        False, description="fact: said also of resources that `exclude` excludes, so that others can find them."
    )

    @property
    def events(self) -> tuple[str, ...]:
        """`event_of` as several."""
        return (self.event_of,) if isinstance(self.event_of, str) else self.event_of

    @property
    def is_further(self) -> bool:
        """Whether its rows are further ones; a site's own view that does not say so decides about the resource."""
        return self.row == "further"

    @property
    def repeated_elements(self) -> frozenset[str]:
        """Names of the elements whose parts its rows are: of `item` and `answer.item`, item and answer."""
        return frozenset(
            name for path in _repeated_paths(self.definition) for name in path.partition("(")[0].split(".") if name
        ) - {"where", "first", "ofType", "$this"}

    @property
    def column_types(self) -> dict[str, str | None]:
        return {column["name"]: column.get("type") for column in _columns(self.definition)}

    @cached_property
    def element_paths(self) -> dict[str, str]:
        """Column → FHIRPath from the resource on, for messages: of a column in `forEach: reaction`, reaction.onset."""
        return dict(_element_paths(self.definition))

    @cached_property
    def numbered_element(self) -> str | None:
        """The repeated element, of which the column `item_number` says which item a row is made of."""
        path = self.element_paths.get(ITEM_NUMBER)
        return path.removesuffix(".%rowIndex") if path else None

    @property
    def column_paths(self) -> dict[str, str]:
        return {column["name"]: column["path"] for column in _columns(self.definition)}


#: Column of views of parts: the number of the item, for the paths of issues.
ITEM_NUMBER = "item_number"

#: What makes a select one row for each of the elements at a path.
_REPEATS = ("forEach", "forEachOrNull", "repeat")


def _repeated_paths(node: Mapping[str, Any]) -> Iterator[str]:
    """What the selects of a view iterate over, at any depth."""
    for select in (*node.get("select", ()), *node.get("unionAll", ())):
        for kind in _REPEATS:
            paths = select.get(kind, ())
            yield from [paths] if isinstance(paths, str) else paths
        yield from _repeated_paths(select)


class ResourceMapping(_Model):
    """One file of `mappings/`: everything that happens to one resource type."""

    resource: str = Field(description="The FHIR type; the file is named after it.")
    order: int = Field(
        10, description="Types of a lower order are transformed first: later ones may use the facts that they leave."
    )
    status: StatusFilter | None = Field(None, description="Which resources make rows, by a code.")
    exclude: tuple[Exclusion, ...] = Field((), description="Which do not, by boolean columns.")
    excluded_unless_row: str | None = Field(
        None,
        description="Reason by which a resource that makes no row is excluded, although others use its facts. Without it the "
        "facts are enough.",
    )
    contact: tuple[str, ...] = Field(
        (),
        description="Columns (dates) that say when the resource was recorded, in their order. Where that is after the date of "
        "a row, the row is about the past, and observation periods go by the day on which it was recorded.",
    )
    known_modifiers: tuple[str, ...] = Field(
        (), description="Modifier extensions that the mapping knows; any other rejects the resource (f2o-063)."
    )
    views: Annotated[tuple[ViewMapping, ...], Field(min_length=1)] = Field(
        description="What is taken from a resource, and what it becomes."
    )

    @model_validator(mode="after")
    def _first_is_resource(self) -> ResourceMapping:
        if self.views[0].kind != "resource":
            raise ValueError("the first view must have `kind: resource`: one row a resource")
        return self

    @property
    def resource_view(self) -> ViewMapping:
        return self.views[0]

    def under(self, options: MappingOptions) -> ResourceMapping:
        """The mapping with only the rules that hold under a site's options."""
        return self.model_copy(
            update={
                "status": self.status.under(options) if self.status else None,
                "exclude": _holding(self.exclude, options),
                "views": tuple(
                    view.model_copy(update={name: _holding(getattr(view, name), options) for name in _RULES_OF_A_VIEW})
                    for view in _holding(self.views, options)
                ),
            }
        )


_CONCEPT_RULES = ("type_concept_id", "concept_id", "result_concept_id")
_RULES_OF_A_VIEW = ("home_table", *_CONCEPT_RULES)


def _holding(rules: tuple[_Rule, ...], options: MappingOptions) -> tuple[_Rule, ...]:
    return tuple(rule for rule in rules if rule.holds(options))


@dataclass(frozen=True)
class ValueMapEntry:
    """One line of a value map: what a code stands for.

    A target is a concept id, `VOCABULARY:code` for the standard concept of a code, or `VOCABULARY=name` for that
    of a name. `meaning:word` names what a
    rule makes of the code, which itself is 0 then.
    """

    system: str
    code: str
    #: Concept ids and codes, the first that the vocabulary has is used.
    targets: tuple[Target, ...]
    exclude_reason: str | None
    #: The code of another element beside which alone the entry holds; None: beside any.
    within: str | None = None
    meaning: str | None = None

    @property
    def concept_ids(self) -> tuple[int, ...]:
        return tuple(target for target in self.targets if isinstance(target, int))


@dataclass(frozen=True)
class Mappings:
    """All mappings of a site."""

    folder: Path
    resources: Mapping[str, ResourceMapping]
    value_maps: Mapping[str, tuple[ValueMapEntry, ...]]
    code_systems: Mapping[str, str]
    vocabulary_priority: Mapping[str, tuple[str, ...]]
    constants: Mapping[str, tuple[int, ...]]
    #: resource types that are landed and counted, never mapped: type → reason
    unmapped_types: Mapping[str, str]
    options: MappingOptions = field(default_factory=MappingOptions)
    #: `unit_key` of a customary spelling of a unit → UCUM code as OMOP writes it
    unit_aliases: Mapping[str, str] = field(default_factory=dict)
    #: by which value maps and code systems are known whatever a source calls them
    systems: SystemNames = field(default_factory=SystemNames)
    #: what numbers may be; of two rules about one concept and unit the later counts, which is the site's own
    limits: tuple[Limit, ...] = ()
    conversions: tuple[Conversion, ...] = ()
    #: by which rows of two resources are one datum
    duplicates: tuple[DuplicateRule, ...] = ()
    #: system → the vocabulary in which codes are looked up that its own does not have
    fall_backs: Mapping[str, FallBack] = field(default_factory=dict)
    #: how sources write the codes of a vocabulary
    code_forms: CodeForms = NO_FORMS

    def vocabulary_of(self, system: str) -> str | None:
        """The vocabulary that a code system is, however it is spelt; None where no table says."""
        return self.code_systems.get(self.systems.canonical(system))

    @cached_property
    def fixed_concepts(self) -> dict[int, str]:
        """Every concept id that the mappings name, and where."""
        named: dict[int, str] = {}
        for resource in self.resources.values():
            for view in resource.views:
                for rules in _CONCEPT_RULES:
                    for rule in getattr(view, rules):
                        for concept_id in rule.concept_ids:
                            named.setdefault(concept_id, f"{resource.resource} {view.name} {rules}")
        for name, entries in self.value_maps.items():
            for entry in entries:
                for concept_id in entry.concept_ids:
                    named.setdefault(concept_id, f"concept_maps/{name} {entry.code}")
        for name, concept_ids in self.constants.items():
            for concept_id in concept_ids:
                named.setdefault(concept_id, name)
        named.pop(0, None)
        return named

    @cached_property
    def coded_concepts(self) -> dict[str, str]:
        """Every `VOCABULARY:code` and `VOCABULARY=name` that the mappings name in place of a concept id, and where."""
        named: dict[str, str] = {}
        for resource in self.resources.values():
            for view in resource.views:
                for rule in (*view.type_concept_id, *view.concept_id, *view.result_concept_id):
                    named |= {target: f"{resource.resource} {view.name}" for target in rule.targets if _is_code(target)}
        for name, entries in self.value_maps.items():
            for entry in entries:
                named |= {target: f"concept_maps/{name} {entry.code}" for target in entry.targets if _is_code(target)}
        named |= {unit_concept(limit.unit): "plausibility" for limit in self.limits if limit.unit}
        for conversion in self.conversions:
            named |= {unit_concept(unit): "units" for unit in (conversion.source, conversion.target)}
        rules: tuple[Limit | Conversion, ...] = (*self.limits, *self.conversions)
        return named | {rule.concept: "plausibility, units" for rule in rules if isinstance(rule.concept, str)}

    def concepts_of(self, resource_type: str) -> frozenset[Target]:
        """The concept ids and `VOCABULARY:code`s that rows of a type can have because the mappings, or a rule, name them."""
        mapping = self.resources.get(resource_type)
        if mapping is None:
            return frozenset()
        named: set[Target] = set(NAMED_BY_RULES)
        for view in mapping.views:
            for rule in (*view.type_concept_id, *view.concept_id, *view.result_concept_id):
                named.update(rule.targets)
        for name, entries in self.value_maps.items():
            if self._is_used(name, mapping):
                named.update(target for entry in entries for target in entry.targets)
        for name, concept_ids in self.constants.items():
            if self._is_used(name, mapping):
                named.update(concept_ids)
        if has_numbers(mapping):
            named.update(unit_concept(limit.unit) for limit in self.limits if limit.unit)
            for conversion in self.conversions:
                named.update(unit_concept(unit) for unit in (conversion.source, conversion.target))
            rules: tuple[Limit | Conversion, ...] = (*self.limits, *self.conversions)
            named.update(rule.concept for rule in rules if rule.concept is not None)
        return frozenset(named)

    def fingerprint(self, resource_type: str) -> str:
        """SHA-256 over everything in the mappings that can change a row of this resource type.

        Of value maps, constants and priorities only those count that the type's rules can ask for by name.
        """
        if resource_type not in self._fingerprints:
            self._fingerprints[resource_type] = self._fingerprint(resource_type)
        return self._fingerprints[resource_type]

    @cached_property
    def _fingerprints(self) -> dict[str, str]:
        """Those that were asked for."""
        return {}

    def _fingerprint(self, resource_type: str) -> str:
        digest = hashlib.sha256()
        mapping = self.resources.get(resource_type)
        digest.update(mapping.model_dump_json().encode() if mapping else b"unmapped")
        for part in (self.value_maps, self.vocabulary_priority, self.constants):
            used = {name: value for name, value in part.items() if self._is_used(name, mapping)}
            digest.update(repr(sorted(used.items())).encode())
        for table in (self.code_systems, self.unit_aliases, self.systems.aliases):
            digest.update(repr(sorted(table.items())).encode())
        digest.update(self.code_rules)
        if self.options.applies_duplicates(resource_type):
            digest.update(repr(self.duplicates).encode())
        if mapping is not None and has_numbers(mapping):
            digest.update(repr((self.limits, self.conversions, self._value_options)).encode())
        digest.update(self.unmapped_types.get(resource_type, "").encode())
        digest.update(repr(sorted(self.options.of(resource_type).items())).encode())
        return digest.hexdigest()

    @cached_property
    def code_rules(self) -> bytes:
        """The content of what says in which forms, and where else, codes are looked up."""
        fall_backs = [(name, one.vocabulary_id, sorted(one.purposes)) for name, one in sorted(self.fall_backs.items())]
        forms = [
            (name, one.model_dump_json(exclude={"cases"}))
            for name, one in sorted(self.code_forms.of_vocabulary.items())
        ]
        return repr((fall_backs, forms)).encode()

    @property
    def _value_options(self) -> tuple[str, ...]:
        """Also of types that only a site's own mapping gives numbers."""
        return (self.options.negative_values, self.options.plausibility, self.options.standard_units)

    def _is_used(self, name: str, mapping: ResourceMapping | None) -> bool:
        """Whether a type's rows can depend on the value map, constant or priority `name`: a view or a rule asks for it."""
        if mapping is None:
            return False
        asked = [RULES[rule].settings for view in mapping.views for rule in view.derive if rule in RULES]
        asked += [
            maps for view in mapping.views for kind, maps in MAPS_OF_TYPES.items() if kind in view.column_types.values()
        ]
        return name in {view.priority for view in mapping.views}.union(*asked)


#: Concepts that rules name themselves: EHR, the type of deaths.
NAMED_BY_RULES = frozenset((32817,))

#: Types of columns that are looked up in value maps without a rule: the country of an address.
MAPS_OF_TYPES = {"patient_location": frozenset(("country",)), "site_location": frozenset(("country",))}


def has_numbers(mapping: ResourceMapping) -> bool:
    """Whether rows of the type can have a value_as_number: a column, or a rule of a view makes it."""
    views = [view for view in mapping.views if view.kind == "event"]
    return any(
        "value_as_number" in view.column_types
        or any("value_as_number" in RULES[rule].writes for rule in view.derive if rule in RULES)
        for view in views
    )


def fixed_concepts(folder: Path) -> dict[int, str]:
    """Concept id → the name of its first use, over all mappings in `folder`."""
    return load_mappings(folder).fixed_concepts


def load_mappings(
    folder: Path, site: str | None = None, options: MappingOptions | None = None, site_mappings: Path | None = None
) -> Mappings:
    """Read and check a folder of mappings, with a site's own entries over them, under a site's options.

    A site's own are in `<folder>/sites/<site>` and, over those, in `<site_mappings>/<site>`; docs/mapping.md lists what
    they may hold. While the files are the same, so is the object: they are interpreted once a process, not once an
    export. Raises MappingError with file and line of the first problem.
    """
    layers = tuple(_layers(folder, site, site_mappings))
    content = content_digest(folder, layers)
    there = tuple(layer for layer in layers if layer.is_dir())  # sites without entries of their own share one object
    try:
        return _loaded(folder, there, options or MappingOptions(), content)
    except _UnusableMappings as unusable:
        reading = unusable.reading
    return replace(reading, site=site).usable()


@lru_cache(maxsize=16)
def _loaded(folder: Path, layers: tuple[Path, ...], options: MappingOptions, _content: bytes) -> Mappings:
    """`_content` distinguishes what was in the same folders at different times. Raises _UnusableMappings."""
    reading = _read(read_sources(folder, layers), folder, options)
    if reading.mappings is None:
        raise _UnusableMappings(reading)
    return reading.mappings


class _UnusableMappings(Exception):
    """Mappings with problems."""

    def __init__(self, reading: MappingReading) -> None:
        super().__init__(f"{len(reading.problems)} problems")
        self.reading = reading


@dataclass(frozen=True)
class MappingReading:
    """What reading the mappings came to."""

    #: The files, entry by entry, with their places.
    sources: Sources
    #: Resource type → its mapping with the rules of all options.
    resources: Mapping[str, ResourceMapping]
    problems: tuple[MappingProblem, ...]
    #: None where there are problems.
    mappings: Mappings | None
    folder: Path
    #: whose own entries are laid over the shared ones
    site: str | None = None

    def usable(self) -> Mappings:
        """The mappings. Raises MappingError with file and line of the first problem."""
        if self.mappings is None:
            first, *others = sorted(self.problems)
            more = f"{len(others):,} more: " if others else "All about it: "
            advice = f"{more}`epic-omop mappings check{f' --site {self.site}' if self.site else ''}`."
            raise first.error("Check EPIC_OMOP_MAPPINGS." if first.file == str(self.folder) else advice)
        return self.mappings


def read_mappings(
    folder: Path, site: str | None = None, options: MappingOptions | None = None, site_mappings: Path | None = None
) -> MappingReading:
    """As `load_mappings`, but everything that is wrong is reported at once, and nothing is raised."""
    reading = _read(read_sources(folder, _layers(folder, site, site_mappings)), folder, options or MappingOptions())
    return replace(reading, site=site)


def _read(sources: Sources, folder: Path, options: MappingOptions) -> MappingReading:
    problems = list(sources.problems)
    resources = {}
    for name, node in sorted(sources.resources.items()):
        problems += stamp_problems(node)
        mapping = _resource(node, problems)
        if mapping is not None:
            resources[name] = mapping
    tables = {name: list(rows.values()) for name, rows in sources.tables.items()}
    systems = _system_names(sources, problems)
    priority = _priority(sources.priority, problems)
    unit_aliases = _unit_aliases(tables["unit_aliases.csv"], problems)
    rules = {name: list(rows.values()) for name, rows in sources.rules.items()}
    limits, conversions = value_rules(rules["plausibility"], rules["units"], unit_aliases, problems)
    mappings = Mappings(
        folder=folder,
        resources={name: mapping.under(options) for name, mapping in resources.items()},
        value_maps={
            name: _under_canonical_names([_entry(row, problems) for row in rows.values()], systems)
            for name, rows in sources.values.items()
        },
        code_systems=code_systems(tables["code_systems.csv"], systems),
        systems=systems,
        vocabulary_priority=priority,
        constants={row.values["name"]: _constant(row, problems) for row in tables["constants.csv"]},
        unmapped_types={row.values["resource_type"]: row.values["reason"] for row in tables["unmapped_types.csv"]},
        options=options,
        unit_aliases=unit_aliases,
        limits=limits,
        conversions=conversions,
        duplicates=duplicate_rules(rules["duplicates"], problems),
        fall_backs=fall_backs(tables["code_systems.csv"], systems, priority, problems),
        code_forms=code_forms(sources.forms, problems),
    )
    return MappingReading(sources, resources, tuple(problems), None if problems else mappings, folder)


def _system_names(sources: Sources, problems: list[MappingProblem]) -> SystemNames:
    rows = [*sources.tables["code_systems.csv"].values()]
    other_names = aliases(rows, problems)
    rows = [row for row in rows if "vocabulary_id" in row.values]
    rows += [row for of_map in sources.values.values() for row in of_map.values()]
    return SystemNames.of(other_names, (row.values["system"] for row in rows))


def _under_canonical_names(entries: list[ValueMapEntry | None], systems: SystemNames) -> tuple[ValueMapEntry, ...]:
    """The entries with the name of their system by which codes are looked up; of two for one code the later, which is
    the site's own."""
    found: dict[tuple[str, str, str | None], ValueMapEntry] = {}
    for entry in entries:
        if entry is not None:
            named = replace(entry, system=systems.canonical(entry.system))
            found[named.system, named.code, named.within] = named
    return tuple(found.values())


def _layers(folder: Path, site: str | None, site_mappings: Path | None) -> list[Path]:
    """A site's own folders, in the order in which they are laid over the shared one."""
    parents = [folder / "sites", *([site_mappings] if site_mappings else [])]
    return [parent / site for parent in parents] if site else []


def _unit_aliases(rows: list[Row], problems: list[MappingProblem]) -> dict[str, str]:
    aliases: dict[str, str] = {}
    for row in rows:
        unit, code = row.values["unit"], row.values["ucum"]
        if aliases.setdefault(unit_key(unit), code) != code:
            problems.append(row.problem(f"the spelling {unit!r} is there twice, for two units"))
    return aliases


_VIEW_KEYS = set(ViewMapping.model_fields) - {"definition"}


def _resource(node: yaml.MappingNode, problems: list[MappingProblem]) -> ResourceMapping | None:
    document = plain(node)
    views = document.get("views")
    if isinstance(views, list):
        document["views"] = [_split_view(view, document.get("resource")) for view in views]
    try:
        return ResourceMapping.model_validate(document)
    except ValidationError as error:
        for problem in error.errors(include_input=False):
            location = [part for part in problem["loc"] if part != "definition"]
            name = ".".join(str(part) for part in location) or "mapping"
            message = problem["msg"].removeprefix("Value error, ")
            problems.append(MappingProblem(*line_of(node_at(node, location)), f"{name}: {message}"))
        return None


def _split_view(view: Any, resource: Any) -> Any:
    """A view in a mapping is a ViewDefinition and this project's keys side by side; separate them."""
    if not isinstance(view, dict):
        return view
    own = {key: value for key, value in view.items() if key in _VIEW_KEYS}
    definition = {key: value for key, value in view.items() if key not in _VIEW_KEYS}
    return {**own, "definition": {"resource": resource, **definition}}


def _priority(nodes: Mapping[str, yaml.Node], problems: list[MappingProblem]) -> dict[str, tuple[str, ...]]:
    found = {}
    for purpose, node in nodes.items():
        names = plain(node)
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            found[purpose] = tuple(names)
        else:
            problems.append(MappingProblem(*line_of(node), f"{purpose} must be a list of vocabulary ids"))
    return found


def _entry(row: Row, problems: list[MappingProblem]) -> ValueMapEntry | None:
    system, code, target = (row.values[name] for name in ("system", "code", "concept_id"))
    excluded = target == EXCLUDE or target.startswith(f"{EXCLUDE}:")
    meant = target.startswith(f"{MEANING}:")
    try:
        return ValueMapEntry(
            system=system,
            code=code,
            targets=() if excluded or meant else _targets(target),
            exclude_reason=target.partition(":")[2] or EXCLUDE if excluded else None,
            within=row.values.get("within"),
            meaning=target.partition(":")[2] if meant else None,
        )
    except ValueError:
        problems.append(
            row.problem(
                "concept_id must be ids, VOCABULARY:code or VOCABULARY=name joined by |, exclude:reason or meaning:word"
            )
        )
        return None


def _constant(row: Row, problems: list[MappingProblem]) -> tuple[int, ...]:
    try:
        return _ids(row.values["concept_id"])
    except ValueError:
        problems.append(row.problem("concept_id must be ids joined by |"))
        return ()


def _targets(text: str) -> tuple[Target, ...]:
    parts = [part.strip() for part in text.split("|")]
    return tuple(int(part) if part.isdigit() else _named(part) for part in parts)


def _named(target: str) -> str:
    parted_target(target)
    return target


def _is_code(target: Target) -> TypeGuard[str]:
    return isinstance(target, str)


def _ids(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("|"))


#: What columns are made of that take a whole element, by their type: for the paths of issues.
_ELEMENTS_OF_TYPES = {
    "visit_provider": "participant.individual",
    "inexact_length": "dosageInstruction.timing.repeat.bounds.ofType(Duration)",
}


def _element_paths(definition: Mapping[str, Any], outer: str = "") -> Iterator[tuple[str, str]]:
    """Name and path of every column, with what its select iterates over before it, less the conditions on that."""
    for select in definition.get("select", ()):
        loops = [select[kind] for kind in _REPEATS if kind in select]
        first = [loop if isinstance(loop, str) else loop[0] for loop in loops]
        loops_before = [outer, *(path.partition(".where(")[0].removeprefix("$this") for path in first)]
        inner = ".".join(part for part in loops_before if part)
        for column in select.get("column", ()):
            path = column["path"]
            if path == "$this":
                path = _ELEMENTS_OF_TYPES.get(column.get("type"), path)
            yield column["name"], inner if inner and path == "$this" else f"{inner}.{path}" if inner else path
        yield from _element_paths(select, inner)
        yield from _element_paths({"select": select.get("unionAll", ())[:1]}, inner)


def _columns(definition: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every column of a view's selects, unionAll arms counted once (their columns are the same)."""
    found: list[dict[str, Any]] = []
    for select in definition.get("select", ()):
        found += select.get("column", ())
        found += _columns(select)
        arms = select.get("unionAll", ())
        if arms:
            found += _columns({"select": [arms[0]]})
    return found
