"""`@rule`: what a rule reads and makes, declared where it is written.

The check of mappings, the fingerprints of resource types, `epic-omop manifest` and docs/writing-a-mapping.md go by these
declarations; `tests/unit/test_rule_declarations.py` runs every rule and compares. A decorated function stays what it was.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import polars as pl

from pipeline.core.line_codes import IssueCode
from pipeline.transform.column_names import IMPLAUSIBLE, issue, lacks, precision, unmapped, uses
from pipeline.transform.rules.base import Derivation

__all__ = ["ISSUES_OF_DATES", "RULES", "Rule", "dated", "looked_up", "rule", "used_fact"]

RuleFunction = Callable[[pl.DataFrame, Derivation], pl.DataFrame]

#: What may be wrong with a date that a rule chooses by.
ISSUES_OF_DATES = (
    IssueCode.DATE_INVALID,
    IssueCode.DATE_SENTINEL,
    IssueCode.DATE_OUT_OF_RANGE,
    IssueCode.END_BEFORE_START,
)


@dataclass(frozen=True)
class Rule:
    """A rule with its declaration. Names of columns unless it says something else."""

    name: str
    apply: RuleFunction
    #: that must be there
    reads: tuple[str, ...] = ()
    #: that are read where they are there
    optional: tuple[str, ...] = ()
    #: that are added or replaced; of those that say more of a row (`column_names`) only where there is something to say
    writes: tuple[str, ...] = ()
    #: FHIR dates among which it chooses: each may have an issue of ISSUES_OF_DATES
    dates: tuple[str, ...] = ()
    #: names of facts that other resources left
    facts: tuple[str, ...] = ()
    #: names of `concept_maps/values/*.csv`
    value_maps: tuple[str, ...] = ()
    #: keys of `vocabulary_priority.yaml`
    priorities: tuple[str, ...] = ()
    #: names in `concept_maps/constants.csv`
    constants: tuple[str, ...] = ()
    #: named settings of the mapping
    options: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """The docstring in one line."""
        return " ".join((inspect.getdoc(self.apply) or "").split())

    @property
    def columns(self) -> tuple[str, ...]:
        """Everything of a view that it may read."""
        return (*self.reads, *self.optional)

    @property
    def settings(self) -> frozenset[str]:
        """Names of the value maps, priorities and constants that its rows can depend on."""
        return frozenset((*self.value_maps, *self.priorities, *self.constants))

    @property
    def all_writes(self) -> frozenset[str]:
        """`writes`, and what dates may add: issues, and that the date which counts is implausible."""
        of_dates = {issue(code, column) for code in ISSUES_OF_DATES for column in self.dates}
        return frozenset((*self.writes, *of_dates, *((IMPLAUSIBLE,) if self.dates else ())))


#: Name → rule, in the order of definition; complete when `pipeline.transform.rules` is imported.
RULES: dict[str, Rule] = {}


def rule(
    *,
    reads: Iterable[str] = (),
    optional: Iterable[str] = (),
    writes: Iterable[str | tuple[str, ...]] = (),
    dates: Iterable[str] = (),
    facts: Iterable[str] = (),
    value_maps: Iterable[str] = (),
    priorities: Iterable[str] = (),
    constants: Iterable[str] = (),
    options: Iterable[str] = (),
) -> Callable[[RuleFunction], RuleFunction]:
    """Declare a function as the rule of its name; see `Rule` for what the parts mean.

    `writes` may hold groups of names, as `dated`, `looked_up` and `used_fact` give them.
    """

    def declared(function: RuleFunction) -> RuleFunction:
        name = function.__name__
        assert name not in RULES, f"the rule {name} is there twice"
        RULES[name] = Rule(
            name=name,
            apply=function,
            reads=tuple(reads),
            optional=tuple(optional),
            writes=tuple(dict.fromkeys(_flat(writes))),
            dates=tuple(dates),
            facts=tuple(facts),
            value_maps=tuple(value_maps),
            priorities=tuple(priorities),
            constants=tuple(constants),
            options=tuple(options),
        )
        return function

    return declared


def _flat(names: Iterable[str | tuple[str, ...]]) -> Iterator[str]:
    for name in names:
        yield from [name] if isinstance(name, str) else name


def dated(name: str, *, keeps_text: bool = False, keeps_precision: bool = True) -> tuple[str, ...]:
    """What `dates.first_usable` adds. `keeps_text`: `name` is a column that is there before and stays as it is;
    without the precision where `dates.without_issues` takes it away."""
    parts = [f"{name}_date", f"{name}_datetime", f"{name}_moment", f"{name}_from"]
    return (*([] if keeps_text else [name]), *parts, *([precision(name)] if keeps_precision else []))


_OF_MAP = ("source_system", "meaning", "excludes")


def looked_up(prefix: str, element: str, *, by_map: bool = False, by_vocabulary: bool = False) -> tuple[str, ...]:
    """What `LookUps.of` adds for a look-up in a value map, the vocabulary, or both."""
    parts = [
        "concept_id",
        "source_code",
        *(_OF_MAP if by_map else ()),
        *(["source_concept_id"] if by_vocabulary else []),
    ]
    return (*(f"{prefix}_{part}" for part in parts), unmapped(element))


def used_fact(name: str) -> tuple[str, ...]:
    """What `base.used` adds."""
    return uses(name), lacks(name)
