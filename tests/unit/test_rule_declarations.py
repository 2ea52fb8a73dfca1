"""What each rule declares is what it does: it works with exactly the columns that it declares, makes exactly those that it
declares, and asks for the declared value maps, priorities, constants, facts and options, and no others.

Every rule runs on frames of the golden cases, as the transform gives them to it, under two sets of options.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from typing import Any, get_args

import polars as pl
import pytest

from pipeline.core.mapping_options import MappingOptions
from pipeline.core.settings import MAPPINGS_FOLDER
from pipeline.transform import events
from pipeline.transform.column_names import EXACT, issue
from pipeline.transform.concepts.index import (
    CONCEPT_FILE,
    CONCEPT_SCHEMA,
    INDEX_FILE,
    INDEX_SCHEMA,
    STRENGTH_FILE,
    STRENGTH_SCHEMA,
)
from pipeline.transform.concepts.look_ups import LookUps
from pipeline.transform.mapping.mappings import load_mappings, read_mappings
from pipeline.transform.rules import RULES, Derivation, Rule
from pipeline.transform.rules.declaration import rule
from tests.golden.test_golden import CASES, as_json
from tests.transforming import transform

#: So many of each frame (up to twice) where columns are taken away one by one.
_ROWS = 60
_ROW = "row_of_test"

_RXNORM = ("RxNorm", "197361", 1332419, "Drug", "S", None, 1, 1332419, "Drug", "RxNorm", None, None)
_MILLIGRAM = ("UCUM", "mg", 8576, "Unit", "S", None, 1, 8576, "Unit", "UCUM", None, None)
#: A tablet of 5 mg, as the golden cases have it.
_INDEX = {
    CONCEPT_FILE: pl.DataFrame(
        [(1332419, "amlodipine 5 MG Oral Tablet", "Drug", "RxNorm", "Clinical Drug", "S", None, 1332419)],
        schema=dict(CONCEPT_SCHEMA),
        orient="row",
    ),
    INDEX_FILE: pl.DataFrame([_RXNORM, _MILLIGRAM], schema=dict(INDEX_SCHEMA), orient="row"),
    STRENGTH_FILE: pl.DataFrame(
        [(1332419, 5.0, 8576, None, None, None, None)], schema=dict(STRENGTH_SCHEMA), orient="row"
    ),
}

#: What few resources have, and what rules treat apart.
_RARE_VALUES = {
    "end": "9999-12-31",
    "onset_age": "99999 a",
    "abatement_age": "99999 a",
    "note_text": "A text.",
    "value_string": "0.12345678901234567890",
    "value_datetime": "2024-05-06",
}


@dataclasses.dataclass
class Call:
    frame: pl.DataFrame
    derivation: Derivation

    @property
    def sample(self) -> Call:
        """With a part of the rows."""
        return Call(self.frame.gather_every(max(1, self.frame.height // _ROWS)), self.derivation)


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Call]]:
    """Rule → the frames that it is called with, those without options and those with another value of each."""
    found: dict[str, list[Call]] = {name: [] for name in RULES}
    by_type: dict[str, list[bytes]] = {}
    mapped = load_mappings(MAPPINGS_FOLDER).resources
    for case in CASES:
        for resource in (*case.resources("fhir"), *case.resources("then")):
            if resource["resourceType"] in mapped:
                by_type.setdefault(resource["resourceType"], []).append(as_json(resource))

    def recording(name: str, apply: Callable[[pl.DataFrame, Derivation], pl.DataFrame]) -> Rule:
        def record(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
            if derivation.options != MappingOptions() or not found[name]:
                found[name].append(Call(frame, derivation))
            return apply(frame, derivation)

        return dataclasses.replace(RULES[name], apply=record)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(events, "RULES", {name: recording(name, known.apply) for name, known in RULES.items()})
        for options in (MappingOptions(), _other_options()):
            transform(tmp_path_factory.mktemp("rules"), [], options, lines=by_type, index=_INDEX)
    return found


def _other_options() -> MappingOptions:
    others = {
        name: next(value for value in reversed(get_args(field.annotation)) if value != field.default)
        for name, field in MappingOptions.model_fields.items()
    }
    return MappingOptions(**others)


@dataclasses.dataclass
class Asked:
    """What a rule asked its derivation for."""

    value_maps: set[str] = dataclasses.field(default_factory=set)
    priorities: set[str] = dataclasses.field(default_factory=set)
    constants: set[str] = dataclasses.field(default_factory=set)
    facts: set[str] = dataclasses.field(default_factory=set)
    options: set[str] = dataclasses.field(default_factory=set)

    def noting(self, derivation: Derivation) -> Derivation:
        """The same derivation, which notes what it is asked for."""

        def noted(names: set[str], get: Callable[..., Any]) -> Callable[..., Any]:
            def get_noted(name: str, *more: Any) -> Any:
                names.add(name)
                return get(name, *more)

            return get_noted

        class _Map(dict[str, Any]):
            def __init__(self, values: Mapping[str, Any], names: set[str]) -> None:
                super().__init__(values)
                self.names = names

            def __getitem__(self, name: str) -> Any:
                self.names.add(name)
                return super().__getitem__(name)

        resolver, options = derivation.resolver, derivation.options
        resolver_noting: Any = type("Resolver", (), {})()
        resolver_noting.resolve = noted(self.priorities, resolver.resolve)
        resolver_noting.resolve_single = noted(self.priorities, resolver.resolve_single)
        resolver_noting.answers = resolver.answers  # of the local map, which every look-up asks
        get_option = noted(self.options, lambda name: getattr(options, name))
        options_noting: Any = type("Options", (), {"__getattr__": lambda _, name: get_option(name)})()
        look_ups = LookUps(
            _Map(derivation.look_ups.value_maps, self.value_maps),
            derivation.sets,
            resolver_noting,
            derivation.look_ups.concepts,
        )
        return dataclasses.replace(
            derivation,
            look_ups=look_ups,
            options=options_noting,
            constants=_Map(derivation.constants, self.constants),
            facts=noted(self.facts, derivation.facts),
        )


def _made(rule: Rule, frame: pl.DataFrame, derivation: Derivation) -> dict[str, pl.Series]:
    """The columns that the rule adds or replaces, with their values; the frame's rows are numbered in _ROW."""
    result = rule.apply(frame, derivation)
    before = frame[result[_ROW]]
    return {
        column.name: column
        for column in result.get_columns()
        if column.name not in before.columns
        or column.dtype != before[column.name].dtype
        or not column.equals(before[column.name], null_equal=True)
    } | {_ROW: result[_ROW]}


def _equal(one: Mapping[str, pl.Series], other: Mapping[str, pl.Series]) -> bool:
    return one.keys() == other.keys() and all(one[name].equals(other[name], null_equal=True) for name in one)


def _numbered(call: Call) -> pl.DataFrame:
    return call.frame.with_row_index(_ROW)


def _with_bad_dates(rule: Rule, call: Call) -> Call:
    """The first rows have a text that is no date in every date that the rule reads."""
    dates = [name for name in rule.dates if name in rule.columns and name in call.frame.columns]
    bad = pl.int_range(pl.len()) < pl.len() // 2 + 1
    return Call(
        call.frame.with_columns(
            pl.when(bad).then(pl.lit("2024-13-45")).otherwise(pl.col(name)).alias(name) for name in dates
        ),
        call.derivation,
    )


def _with_rare_values(rule: Rule, call: Call) -> Call:
    values = {
        name: value for name, value in _RARE_VALUES.items() if name in rule.columns and name in call.frame.columns
    }
    half = pl.int_range(pl.len()) % 2 == 0
    return Call(
        call.frame.with_columns(
            pl.when(half).then(pl.lit(value)).otherwise(pl.col(name)).alias(name) for name, value in values.items()
        ),
        call.derivation,
    )


def _variants(rule: Rule, calls: Mapping[str, list[Call]]) -> Iterator[Call]:
    for call in calls[rule.name]:
        yield call
        if not _RARE_VALUES.keys().isdisjoint(rule.columns):
            yield _with_rare_values(rule, call)
        if rule.dates:
            yield _with_bad_dates(rule, call)


parametrized = pytest.mark.parametrize("name", RULES)


@parametrized
def test_a_rule_works_with_exactly_the_columns_that_it_declares(name: str, calls: dict[str, list[Call]]) -> None:
    known = RULES[name]
    assert calls[name], "no golden case has a row for this rule"
    needed: set[str] = set()
    noticed: set[str] = set()
    for call in _variants(known, calls):
        frame = _numbered(call.sample)
        made = _made(known, frame, call.derivation)
        declared = frame.select(_ROW, *(column for column in known.columns if column in frame.columns))
        alone = _made(known, declared, call.derivation)
        # What others left in the frame and the rule replaces counts as made in both.
        assert _equal({column: made[column] for column in made}, {column: alone[column] for column in made})
        assert all(alone[column].equals(frame[made[_ROW]][column]) for column in alone.keys() - made.keys())
        for column in known.columns:
            if column not in frame.columns:
                assert column in known.optional, column
                continue
            try:
                without = _made(known, frame.drop(column), call.derivation)
            except pl.exceptions.ColumnNotFoundError:
                needed.add(column)
            else:
                if not _equal({key: value for key, value in made.items() if key != column}, without):
                    noticed.add(column)
    assert needed == set(known.reads)
    assert noticed - needed == set(known.optional)


@parametrized
def test_a_rule_makes_exactly_the_columns_that_it_declares(name: str, calls: dict[str, list[Call]]) -> None:
    known = RULES[name]
    made: set[str] = set()
    for call in _variants(known, calls):
        frame = _numbered(call)
        made |= _made(
            known, frame.select(_ROW, *(c for c in known.columns if c in frame.columns)), call.derivation
        ).keys()
    made.discard(_ROW)
    assert set(known.writes) - made == set(), "declared and not made"
    assert made - known.all_writes == set(), "made and not declared"
    in_view = [date for date in known.dates if date in known.columns]
    assert {issue("date_invalid", date) for date in in_view} - made == set()


@parametrized
def test_a_rule_asks_for_exactly_what_it_declares(name: str, calls: dict[str, list[Call]]) -> None:
    known, asked = RULES[name], Asked()
    for call in _variants(known, calls):
        known.apply(call.frame, asked.noting(call.derivation))
    for kind in ("value_maps", "priorities", "constants", "facts", "options"):
        assert getattr(asked, kind) == set(getattr(known, kind)), kind


def test_declarations_name_what_there_is() -> None:
    mappings = load_mappings(MAPPINGS_FOLDER)
    facts = {view.fact for resource in read_mappings(MAPPINGS_FOLDER).resources.values() for view in resource.views}
    for known in RULES.values():
        assert set(known.value_maps) <= mappings.value_maps.keys()
        assert set(known.priorities) <= mappings.vocabulary_priority.keys()
        assert set(known.constants) <= mappings.constants.keys()
        assert set(known.options) <= MappingOptions.model_fields.keys()
        assert set(known.facts) <= facts, known.name
        assert known.summary, known.name
        assert not set(known.reads) & set(known.optional), known.name
        assert not any(column.endswith(EXACT) for column in known.reads), known.name


def test_a_decorated_function_stays_what_it_was() -> None:
    for name, known in RULES.items():
        assert inspect.isfunction(known.apply)
        assert known.apply.__name__ == name
        assert len(inspect.signature(known.apply).parameters) == 2
    assert reduce(max, (len(known.writes) for known in RULES.values())) > 1


def test_a_name_is_declared_once() -> None:
    def visit(frame: pl.DataFrame, _: Derivation) -> pl.DataFrame:
        return frame

    with pytest.raises(AssertionError, match="the rule visit is there twice"):
        rule()(visit)
