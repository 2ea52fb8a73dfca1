"""References: what a FHIR Reference leads to, as one integer, or why it leads nowhere.

A literal reference is the surrogate id of its target, one by identifier the key of that (`pipeline.transform.identifiers`).
Neither needs a look-up: what a key or a PractitionerRole stands for is resolved at publication, for all rows at once.
A reference that cannot be followed is a `ReferenceProblem`, whose numbers no surrogate id has; `without_problems` takes
them out of the columns again, as issues.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import polars as pl

from pipeline.fhir.identity import SurrogateKeys, parse_reference
from pipeline.transform.identifiers import IDENTIFIED_TYPES, IdentifierKeys, parts_of, queried_identifier
from pipeline.transform.mapping.mappings import ITEM_NUMBER

__all__ = [
    "PERSON_PROBLEM",
    "PROVIDER",
    "TARGETS",
    "VISIT_PROVIDER",
    "ReferenceProblem",
    "ReferenceReader",
    "Target",
    "is_reference",
    "without_problems",
]


class ReferenceProblem(IntEnum):
    """Why a reference is not followed; the names are codes of issues."""

    reference_unreadable = 1
    #: to a contained resource, which has no row of its own
    reference_contained = 2
    #: by an identifier, of a type whose identifiers are not compared
    reference_by_identifier = 3
    #: to a type of resource that cannot be what is looked for: a Device as provider
    reference_type_unusable = 4


@dataclass(frozen=True)
class Target:
    """What a column of type `Reference(<name>)` may lead to."""

    #: the type of references that do not say it
    default: str
    #: other types of resources that are followed
    others: tuple[str, ...] = ()
    #: any type is followed: publication reports what is not there, with the resource that is missing
    is_open: bool = False
    #: types that are passed over without an issue: they say nothing about this column
    ignored: tuple[str, ...] = ()
    #: contained resources are read elsewhere
    reads_contained: bool = False

    @property
    def types(self) -> tuple[str, ...]:
        return (self.default, *self.others)


#: Type of columns that take the first of several references that can be a provider.
PROVIDER = "provider"
#: Type of the column that takes the provider of a visit (`pipeline.transform.participants`).
VISIT_PROVIDER = "visit_provider"


def is_reference(column_type: str | None) -> bool:
    """Whether a column's values are what `ReferenceReader` makes of references."""
    return column_type is not None and (
        column_type.startswith("Reference(") or column_type in {PROVIDER, VISIT_PROVIDER}
    )


TARGETS = {
    target.default: target
    for target in (
        Target("Patient", is_open=True),
        Target("Encounter", ignored=("EpisodeOfCare",)),
        Target("Practitioner", ("PractitionerRole",)),
        Target("Organization", ("Location",)),
        Target("Location", ("Organization",)),
        Target("Medication", reads_contained=True),
        Target("MedicationRequest", reads_contained=True),  # a contained order makes no row, so that nothing is twice
        Target("Condition", ("Procedure",)),  # Encounter.diagnosis.condition may be either
        Target("Device", reads_contained=True),
        # a contained result has its row by the resource that contains it
        Target("Observation", ignored=("QuestionnaireResponse", "MolecularSequence"), reads_contained=True),
        Target("Specimen", reads_contained=True),  # a contained one has no row that could be given a visit
        Target("Binary", is_open=True),
    )
}

#: References of one kind of element that are remembered: those that follow each other are often the same.
_MEMO_LIMIT = 100_000
#: Stands for what is not remembered; None is remembered, too.
_UNKNOWN = -(1 << 64)

Converter = Callable[[Any], int | None]


class ReferenceReader:
    """Converters of one site's references. Not thread-safe: they remember what they read."""

    def __init__(self, keys: SurrogateKeys, identifiers: IdentifierKeys) -> None:
        self._keys = keys
        self._identifiers = identifiers
        #: keys of identifiers that references were made by, until `taken_keys`
        self._used_keys: set[int] = set()

    def taken_keys(self) -> list[int]:
        """The keys of identifiers that references were made by since the last call."""
        taken = sorted(self._used_keys)
        self._used_keys.clear()
        return taken

    def one(self, target: Target) -> Converter:
        """A function Reference → surrogate id of the target, key of its identifier, problem, or None without content.

        It raises ValueError for a `reference` or an identifier of a shape that FHIR does not allow.
        """
        read = self._read
        memo: dict[str, int | None] = {}

        def convert(reference: dict[str, Any]) -> int | None:
            text = reference.get("reference")
            if text.__class__ is not str or "identifier" in reference or "type" in reference:
                return read(reference, target)
            found = memo.get(text, _UNKNOWN)
            if found is _UNKNOWN:
                if len(memo) >= _MEMO_LIMIT:
                    memo.clear()
                found = read(reference, target)
                if found not in self._used_keys:  # a key is noted each time
                    memo[text] = found
            return found

        return convert

    def first(self, target: Target) -> Converter:
        """A function Reference or array of them → the first that can be followed, else the first problem, else None."""
        one = self.one(target)

        def convert(references: Any) -> int | None:
            if references.__class__ is dict:
                return one(references)
            if references.__class__ is not list:
                raise ValueError("expected a Reference")
            problem = None
            for reference in references:
                if reference is None:
                    continue
                if reference.__class__ is not dict:
                    raise ValueError("expected a Reference")
                found = one(reference)
                if found is not None and not 0 < found <= _LAST_PROBLEM:
                    return found
                problem = problem or found
            return problem

        return convert

    def _read(self, reference: dict[str, Any], target: Target) -> int | None:
        text, identifier = reference.get("reference"), reference.get("identifier")
        found = None if text is None else self._literal(text, _named_type(reference), target)
        if identifier is not None and (found is None or 0 < found <= _LAST_PROBLEM):
            by_identifier = self._by_parts(_named_type(reference) or target.default, parts_of(identifier), target)
            is_better = by_identifier is not None and not 0 < by_identifier <= _LAST_PROBLEM
            return by_identifier if found is None or is_better else found
        return found

    def _literal(self, text: Any, named: str | None, target: Target) -> int | None:
        parsed = parse_reference(text, named or target.default)
        if parsed is not None:
            if parsed[0] in target.ignored:
                return None
            if target.is_open or parsed[0] in target.types:
                return self._keys.of(*parsed)
            return ReferenceProblem.reference_type_unusable.value
        if text.startswith("#"):
            return None if target.reads_contained else ReferenceProblem.reference_contained.value
        path, separator, query = text.partition("?")
        resource_type = path.rpartition("/")[2]
        if not separator or not resource_type.isalpha():
            return ReferenceProblem.reference_unreadable.value
        return self._by_parts(resource_type, queried_identifier(query), target)

    def _by_parts(self, resource_type: str, parts: tuple[str | None, str] | None, target: Target) -> int | None:
        if resource_type in target.ignored:
            return None
        if resource_type not in target.types:
            return ReferenceProblem.reference_type_unusable.value
        if resource_type not in IDENTIFIED_TYPES:
            return ReferenceProblem.reference_by_identifier.value
        if parts is None:
            return ReferenceProblem.reference_unreadable.value
        key = self._identifiers.of(resource_type, *parts)
        self._used_keys.add(key)
        return key


def _named_type(reference: dict[str, Any]) -> str | None:
    """Reference.type: a type's name, or the URL of its definition."""
    name = reference.get("type")
    return name.rpartition("/")[2] if name.__class__ is str and name else None


_LAST_PROBLEM = max(ReferenceProblem)
_CODES = {problem.value: problem.name for problem in ReferenceProblem}

#: Column that `without_problems` adds where the reference to the person has a problem: its code.
PERSON_PROBLEM = "person_problem"


def without_problems(frame: pl.DataFrame, columns: Iterable[str]) -> tuple[pl.DataFrame, dict[str, pl.DataFrame]]:
    """The rows with NULL for references that cannot be followed, and for each such column: surrogate_id, code, and
    the number of the item of an array where the rows have it."""
    problems: dict[str, pl.DataFrame] = {}
    for name in columns:
        is_problem = frame[name].is_between(1, _LAST_PROBLEM)
        if not is_problem.any():
            continue
        code = pl.col(name).replace_strict(_CODES, default=None, return_dtype=pl.String)
        if "surrogate_id" in frame.columns:
            number = [ITEM_NUMBER] if ITEM_NUMBER in frame.columns else []
            problems[name] = frame.filter(is_problem).select("surrogate_id", code.alias("code"), *number)
        if name == "person_id":
            frame = frame.with_columns(code.alias(PERSON_PROBLEM))
        frame = frame.with_columns(pl.when(~is_problem).then(pl.col(name)).alias(name))
    return frame, problems
