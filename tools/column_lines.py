"""Which elements of a resource become which columns of a table, and by which rule: the lines of docs/mapping/.

They come from the mapping's views, the declarations of rules, and the words for these in `rule_words.yaml`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict

from omop_schema.cdm_fields import polars_schema
from pipeline.sql_on_fhir.r4 import elements_of as elements_of_type
from pipeline.transform.column_types import CONVERTED_TYPES
from pipeline.transform.mapping.mappings import ConceptRule, Mappings, ResourceMapping, ViewMapping
from pipeline.transform.routing import EVENT_COLUMNS
from pipeline.transform.rules import RULES
from tools.concept_names import named
from tools.elements import condition_text, elements_of

__all__ = ["ColumnLine", "ViewElements", "column_lines", "location_lines", "rule_words", "tables_of"]

_FILE = Path(__file__).with_name("rule_words.yaml")


class Words(BaseModel):
    """Which columns a rule makes of which, in words."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    makes: tuple[str, ...]
    of: tuple[str, ...]
    says: str

    def are_about(self, column: str) -> bool:
        return any(column.startswith(name[:-1]) if name.endswith("*") else column == name for name in self.makes)


class LocationWords(BaseModel):
    """Which columns of `location` come of which elements, in words."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    columns: tuple[str, ...]
    of: tuple[str, ...]
    says: str


class RuleWords(BaseModel):
    """The file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rules: Mapping[str, tuple[Words, ...]]
    types: Mapping[str, tuple[str, ...]]
    #: View column that is a column of a table as it is → how it comes about.
    direct: Mapping[str, str]
    #: Boolean view column → when it is true, where its path would say it less well.
    conditions: Mapping[str, str]
    #: Column type of an address → lines of `location`.
    locations: Mapping[str, tuple[LocationWords, ...]]


@cache
def rule_words() -> RuleWords:
    return RuleWords.model_validate(yaml.safe_load(_FILE.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class ColumnLine:
    """`columns` of the CDM come from `elements`, as `rule` says. Without elements the rule says what is always there."""

    elements: tuple[str, ...]
    columns: tuple[str, ...]
    rule: str


class ViewElements:
    """The elements of the columns that a view has, its own before those of the resource."""

    def __init__(self, mapping: ResourceMapping, view: ViewMapping) -> None:
        first = mapping.resource_view
        self._paths = {**first.element_paths, **view.element_paths}
        self._written = {**first.column_paths, **view.column_paths}
        self._of_type = elements_of_type(mapping.resource) or {}
        self._types = {**first.column_types, **view.column_types}

    def __contains__(self, column: str) -> bool:
        return column in self._paths

    def kind(self, column: str) -> str:
        return self._types.get(column) or ""

    def of(self, columns: Iterable[str]) -> tuple[str, ...]:
        """Their elements, each once."""
        return tuple(dict.fromkeys(name for column in columns for name in self._one(column)))

    def _one(self, column: str) -> tuple[str, ...]:
        path, kind = self._paths.get(column, ""), self.kind(column)
        reporter = re.fullmatch(r"reported_by_patient\((.*)\)", kind)
        if reporter:
            return tuple(reporter[1].split("/"))
        found = rule_words().types.get(kind, ())
        if found and found[0].startswith("."):
            return tuple(name + part for name in elements_of(path) for part in found)
        if not found or self._written[column] != "$this":
            return elements_of(path)
        if path == "$this":
            return tuple(name for name in found if self._is_element(name)) or found
        return (path,) if path.startswith(found[0]) else tuple(f"{path}.{name}" for name in found)

    def _is_element(self, name: str) -> bool:
        """Whether the resource has it: words for a column type name what it looks at in any of several."""
        first = name.partition(".")[0].removesuffix("[x]")
        return any(first == known or first.startswith(known.removesuffix("[x]")) for known in self._of_type)

    def condition(self, column: str) -> str:
        """A boolean column as words."""
        if column in rule_words().conditions:
            return rule_words().conditions[column]
        kind = self.kind(column)
        if kind.startswith("reported_by_patient"):
            return f"the patient or a relative is {' or '.join(self._one(column))}"
        if kind in CONVERTED_TYPES:
            return re.sub(r"^true where ", "", CONVERTED_TYPES[kind].meaning)
        return condition_text(self._paths.get(column, column))


def tables_of(view: ViewMapping) -> tuple[str, ...]:
    """The tables of a view's rows: its own, or the home tables of events."""
    if view.table:
        return (view.table,)
    return tuple(dict.fromkeys(rule.table for rule in view.home_table))


def column_lines(mapping: ResourceMapping, view: ViewMapping, mappings: Mappings) -> list[ColumnLine]:
    """The lines of a view's rows in the order of the table's columns; columns of one origin share a line."""
    elements = ViewElements(mapping, view)
    found: dict[tuple[tuple[str, ...], str], list[str]] = {}
    for column, name in _columns(view):
        line = _of_concept(name, view, elements, mappings) if view.kind == "event" else None
        line = line or _of_rule(name, view, elements) or _direct(name, elements)
        if line and line[1]:
            found.setdefault(line, []).append(column)
    return [ColumnLine(names, tuple(dict.fromkeys(columns)), rule) for (names, rule), columns in found.items()]


def location_lines(mapping: ResourceMapping) -> list[ColumnLine]:
    """Those of the resource's address, where it has one."""
    kind = mapping.resource_view.column_types.get("location_id") or ""
    return [ColumnLine(words.of, words.columns, words.says) for words in rule_words().locations.get(kind, ())]


def _columns(view: ViewMapping) -> Iterator[tuple[str, str]]:
    """(column of the CDM, name in the view) of all that a view's rows can fill."""
    for table in tables_of(view):
        roles = EVENT_COLUMNS[table] if view.kind == "event" else {name: name for name in polars_schema(table)}
        yield from ((column, roles[column]) for column in polars_schema(table) if column in roles)


def _of_rule(name: str, view: ViewMapping, elements: ViewElements) -> tuple[tuple[str, ...], str] | None:
    """By the last rule that makes it."""
    for rule in reversed([RULES[each] for each in view.derive]):
        if name not in rule.writes:
            continue
        for words in rule_words().rules.get(rule.name, ()):
            if words.are_about(name):
                return elements.of(words.of), words.says
        return elements.of(rule.columns), rule.summary
    return None


def _direct(name: str, elements: ViewElements) -> tuple[tuple[str, ...], str] | None:
    if name not in elements:
        return None
    kind = elements.kind(name)
    meaning = rule_words().direct.get(kind) or rule_words().direct.get(name)
    return elements.of([name]), meaning or (CONVERTED_TYPES[kind].meaning if kind in CONVERTED_TYPES else "As it came.")


_CONCEPT_ROLES = ("concept_id", "source_concept_id", "source_value")


def _of_concept(
    name: str, view: ViewMapping, elements: ViewElements, mappings: Mappings
) -> tuple[tuple[str, ...], str] | None:
    """Of the roles that every event has: its concept and its type."""
    if name == "type_concept_id":
        return _by_conditions(view.type_concept_id, elements)
    made = {column for each in view.derive for column in RULES[each].writes}
    if name == "concept_id" and view.concept_id:
        return _by_conditions(view.concept_id, elements)
    if name not in _CONCEPT_ROLES or not view.code or (name in made and name != "concept_id"):
        return None
    codes, how = elements.of([view.code]), ""
    of_code = _of_rule(view.code, view, elements)
    if of_code:
        codes, how = of_code[0], of_code[1] + " "
    if name == "source_value":
        return codes, f"{how}The code as it came, also where it has no concept."
    if name == "source_concept_id":
        return codes, f"{how}The concept of the code itself, Standard or not."
    order = ", ".join(mappings.vocabulary_priority.get(view.priority or "", ()))
    where = "" if view.table else " Its domain decides the table."
    first = f" Of several codings the first of {order} that has one." if order else ""
    return codes, f"{how}The Standard concept of the code, else 0.{first}{where}"


def _by_conditions(rules: Iterable[ConceptRule], elements: ViewElements) -> tuple[tuple[str, ...], str]:
    """Concepts by the first condition that holds."""
    choices, whens = [], []
    for rule in rules:
        concept = named(rule.targets[0])
        whens += [rule.when] if rule.when else []
        choices.append(f"{concept} where {elements.condition(rule.when)}" if rule.when else concept)
    text = "; ".join([*choices[:-1], f"else {choices[-1]}"]) if len(choices) > 1 else f"Always {choices[0]}"
    return elements.of(whens), text + "."
