"""Numbers of rows against the rules about numbers (`pipeline.transform.mapping.value_rules`): limits, and units.

Set-based, on rows whose concept and table are known. What a rule finds is counted, and where the site's options say so,
the number goes, the row goes, or number and unit are brought into the standard unit. What the source holds stays in the
source columns. No row is compared with another one here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import polars as pl

from pipeline.core.line_codes import IssueCode
from pipeline.core.mapping_options import MappingOptions
from pipeline.staging.schemas import SCHEMAS, VALUE_CHECK
from pipeline.transform.column_names import exact
from pipeline.transform.mapping.value_rules import DOMAINS, Conversion, Limit, unit_concept

__all__ = ["CONVERTED", "IMPLAUSIBLE_VALUE", "NEGATIVE_VALUE", "REPORTED", "CheckedRows", "ValueChecks"]

#: Findings. The first two are codes of issues as well, and reasons of what is excluded.
NEGATIVE_VALUE, IMPLAUSIBLE_VALUE, CONVERTED = IssueCode.VALUE_NEGATIVE, IssueCode.VALUE_IMPLAUSIBLE, "unit_converted"
#: What was done with a finding where the option says `report`: nothing.
REPORTED = "reported"

#: Doubles hold 15 digits; a product of two is cut where its own error begins: 98.6 °F is 37 °C.
_DIGITS = 12
_ROW = "__row"
#: Columns of a row that have the unit of its number.
_NUMBERS = ("value_as_number", "range_low", "range_high")
#: What says something of a number that is no more there.
_OF_NUMBER = ("value_as_number", "operator_concept_id")

_KEY = {"concept_id": pl.Int64, "table": pl.String, "unit_concept_id": pl.Int64}
_LIMIT = {"low": pl.Float64, "high": pl.Float64, "action": pl.String}
_SIGN = {"is_allowed": pl.Boolean, "action": pl.String}
#: By what a rule is found, the narrowest first.
_WAYS = (("concept_id", "unit_concept_id"), ("concept_id",), ("table", "unit_concept_id"), ("table",))


@dataclass(frozen=True)
class CheckedRows:
    """Rows after the checks, and what these found."""

    rows: pl.DataFrame
    #: of the rows that were given, those with a finding about their number: all columns, `finding` and `action`
    found: pl.DataFrame
    #: SCHEMAS[VALUE_CHECK]
    counts: pl.DataFrame


@dataclass(frozen=True)
class ValueChecks:
    """The rules of a site by the concepts of the loaded vocabulary; what this does not have is left out."""

    options: MappingOptions
    #: rules by the columns of one of `_WAYS`
    limits: Mapping[tuple[str, ...], pl.DataFrame]
    signs: Mapping[tuple[str, ...], pl.DataFrame]
    #: concept_id, unit_concept_id, standard_unit, factor, offset
    conversions: pl.DataFrame

    @classmethod
    def of(
        cls,
        limits: Iterable[Limit],
        conversions: Iterable[Conversion],
        options: MappingOptions,
        concepts: Mapping[str, int],
    ) -> ValueChecks:
        """`concepts`: `VOCABULARY:code` → its standard concept."""
        converted = _conversions(conversions, concepts)
        resolved = [found for limit in limits if (found := _resolved(limit, concepts))]
        return cls(
            options,
            _by_ways([*_in_source_units(resolved, converted), *resolved], _limit_of, _LIMIT),
            _by_ways(resolved, _sign_of, _SIGN),
            pl.DataFrame(
                [(concept, source, *how) for (concept, source), how in converted.items()],
                schema={
                    "concept_id": pl.Int64,
                    "unit_concept_id": pl.Int64,
                    "standard_unit": pl.Int64,
                    "factor": pl.Float64,
                    "offset": pl.Float64,
                },
                orient="row",
            ),
        )

    def check(self, rows: pl.DataFrame) -> CheckedRows:
        """Takes rows with concept_id, table, and, where they have numbers, value_as_number and unit_concept_id."""
        of_found = {**rows.schema, "finding": pl.String(), "action": pl.String()}
        nothing = CheckedRows(rows, pl.DataFrame(schema=of_found), pl.DataFrame(schema=SCHEMAS[VALUE_CHECK]))
        if "value_as_number" not in rows.columns:
            return nothing
        if "unit_concept_id" not in rows.columns:
            rows = rows.with_columns(pl.lit(None, dtype=pl.Int64).alias("unit_concept_id"))
        rows = rows.with_row_index(_ROW)
        numbers = rows.select(_ROW, "value_as_number", *_KEY).filter(
            pl.col("value_as_number").is_not_null() & pl.col("table").is_in(list(DOMAINS.values()))
        )
        if numbers.is_empty():
            return nothing
        found = self._found(numbers)
        converted = self._converted(numbers if found.is_empty() else numbers.join(_gone(found), on=_ROW, how="anti"))
        if found.is_empty() and converted.is_empty():
            return nothing
        counts = pl.concat([_counted(rows, found), _counted(rows, converted)])
        marked = nothing.found
        if not found.is_empty():
            actions = found.select(_ROW, "finding", "action")
            marked = rows.join(actions, on=_ROW, how="inner", maintain_order="left").drop(_ROW)
        rows = self._with_standard_units(_without(rows, found), converted)
        return CheckedRows(rows.drop(_ROW), marked, counts)

    def _found(self, numbers: pl.DataFrame) -> pl.DataFrame:
        """_ROW, finding and action (keep, null, exclude, or reported) of numbers that a rule does not allow."""
        schema = {_ROW: pl.UInt32, "concept_id": pl.Int64, "unit_concept_id": pl.Int64}
        found = pl.DataFrame(schema={**schema, "finding": pl.String, "action": pl.String})
        value = pl.col("value_as_number")
        for option, finding, rules, looked_at, is_wrong in (
            (
                self.options.negative_values,
                NEGATIVE_VALUE,
                self.signs,
                numbers.filter(value < 0),
                ~pl.col("is_allowed"),
            ),
            (
                self.options.plausibility,
                IMPLAUSIBLE_VALUE,
                self.limits,
                numbers,
                (value < pl.col("low")).fill_null(False) | (value > pl.col("high")).fill_null(False),
            ),
        ):
            if option == "off" or not rules or looked_at.is_empty():
                continue
            wrong = _narrowest(looked_at, rules).filter(is_wrong).join(found, on=_ROW, how="anti")
            action = pl.lit(REPORTED) if option == "report" else pl.col("action")
            found = pl.concat([found, wrong.select(*schema, pl.lit(finding).alias("finding"), action.alias("action"))])
        return found

    def _converted(self, numbers: pl.DataFrame) -> pl.DataFrame:
        """_ROW, standard_unit, factor, offset, finding and action of numbers in a unit that is converted."""
        option = self.options.standard_units
        conversions = self.conversions if option != "off" else self.conversions.clear()
        action = "converted" if option == "apply" else REPORTED
        return numbers.join(conversions, on=["concept_id", "unit_concept_id"], how="inner").with_columns(
            pl.lit(CONVERTED).alias("finding"), pl.lit(action).alias("action")
        )

    def _with_standard_units(self, rows: pl.DataFrame, converted: pl.DataFrame) -> pl.DataFrame:
        if self.options.standard_units != "apply" or converted.is_empty():
            return rows
        rows = rows.join(
            converted.select(_ROW, "standard_unit", "factor", "offset"), on=_ROW, how="left", maintain_order="left"
        )
        is_converted = pl.col("standard_unit").is_not_null()
        columns = [name for name in _NUMBERS if name in rows.columns]
        return rows.with_columns(
            *(
                pl.when(is_converted)
                .then((pl.col(name) * pl.col("factor") + pl.col("offset")).round_sig_figs(_DIGITS))
                .otherwise(name)
                .alias(name)
                for name in columns
            ),
            *_emptied(rows, (exact(name) for name in columns), is_converted),
            pl.coalesce("standard_unit", "unit_concept_id").alias("unit_concept_id"),
        ).drop("standard_unit", "factor", "offset")


def _without(rows: pl.DataFrame, found: pl.DataFrame) -> pl.DataFrame:
    """Rows without those that are excluded, and without the numbers that become NULL."""
    excluded = found.filter(pl.col("action") == "exclude")
    if not excluded.is_empty():
        rows = rows.join(excluded.select(_ROW), on=_ROW, how="anti", maintain_order="left")
    emptied = found.filter(pl.col("action") == "null")
    if emptied.is_empty():
        return rows
    is_emptied = pl.col(_ROW).is_in(emptied[_ROW].implode())
    names = (*_OF_NUMBER, *(exact(name) for name in _OF_NUMBER))
    return rows.with_columns(_emptied(rows, names, is_emptied))


def _emptied(rows: pl.DataFrame, names: Iterable[str], where: pl.Expr) -> list[pl.Expr]:
    return [pl.when(~where).then(name).alias(name) for name in names if name in rows.columns]


def _gone(found: pl.DataFrame) -> pl.DataFrame:
    """The rows whose number goes."""
    return found.filter(pl.col("action").is_in(["null", "exclude"])).select(_ROW)


def _counted(rows: pl.DataFrame, found: pl.DataFrame) -> pl.DataFrame:
    """SCHEMAS[VALUE_CHECK] of what was found, one row a resource, concept, unit and finding."""
    lines = rows.select(_ROW, "surrogate_id", "file_number", "line")
    columns = list(SCHEMAS[VALUE_CHECK])
    return (
        found.select(_ROW, "finding", "action", "concept_id", "unit_concept_id")
        .join(lines, on=_ROW, how="inner")
        .group_by(columns[:-1], maintain_order=True)
        .agg(pl.len().cast(pl.Int64).alias("count"))
        .select(columns)
    )


def _narrowest(numbers: pl.DataFrame, rules: Mapping[tuple[str, ...], pl.DataFrame]) -> pl.DataFrame:
    """Each number with the columns of the narrowest rule that is about it; numbers without one are left out."""
    found, rest = [], numbers
    for way in _WAYS:
        if way in rules and not rest.is_empty():
            with_rule = rest.join(rules[way], on=list(way), how="inner")
            found.append(with_rule)
            rest = rest.join(with_rule.select(_ROW), on=_ROW, how="anti")
    columns = [*numbers.columns, *(name for name in next(iter(rules.values())).columns if name not in _KEY)]
    return pl.concat([frame.select(columns) for frame in found]) if found else numbers.clear()


# --- rules by concepts ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Resolved:
    """A limit with ids of the loaded vocabulary, by the values of a way's columns."""

    way: tuple[str, ...]
    key: tuple[int | str, ...]
    limit: Limit
    low: float | None
    high: float | None


def _resolved(limit: Limit, concepts: Mapping[str, int]) -> _Resolved | None:
    """None where the vocabulary lacks the concept or the unit."""
    names: dict[str, int | str | None] = {}
    if limit.concept is not None:
        names["concept_id"] = _concept_id(limit.concept, concepts)
    else:
        names["table"] = DOMAINS[limit.domain or ""]
    if limit.unit is not None:
        names["unit_concept_id"] = concepts.get(unit_concept(limit.unit))
    key = tuple(value for value in names.values() if value)
    return _Resolved(tuple(names), key, limit, limit.low, limit.high) if len(key) == len(names) else None


def _concept_id(concept: int | str, concepts: Mapping[str, int]) -> int | None:
    return concept if isinstance(concept, int) else concepts.get(concept)


def _conversions(
    conversions: Iterable[Conversion], concepts: Mapping[str, int]
) -> dict[tuple[int, int], tuple[int, float, float]]:
    """(concept, unit) → (standard unit, factor, offset), of what the vocabulary has."""
    found = {}
    for one in conversions:
        concept = _concept_id(one.concept, concepts)
        source, target = (concepts.get(unit_concept(unit)) for unit in (one.source, one.target))
        if concept and source and target:
            found[concept, source] = (target, one.factor, one.offset)
    return found


def _in_source_units(
    limits: list[_Resolved], conversions: Mapping[tuple[int, int], tuple[int, float, float]]
) -> list[_Resolved]:
    """The limits of standard units in the units that are converted to them: no number need be converted to be judged."""
    by_key = {one.key: one for one in limits if one.way == _WAYS[0]}
    found = []
    for (concept, source), (target, factor, offset) in conversions.items():
        one = by_key.get((concept, target))
        if one is not None:
            low, high = (None if end is None else _rounded((end - offset) / factor) for end in (one.low, one.high))
            found.append(_Resolved(one.way, (concept, source), one.limit, low, high))
    return found


def _rounded(number: float) -> float:
    return float(f"{number:.{_DIGITS}g}")


def _limit_of(one: _Resolved) -> tuple[float | None, float | None, str] | None:
    return None if one.low is None and one.high is None else (one.low, one.high, one.limit.action)


def _sign_of(one: _Resolved) -> tuple[bool, str] | None:
    allowed = one.limit.negative_allowed
    return None if allowed is None else (allowed, one.limit.action)


def _by_ways(
    limits: Iterable[_Resolved],
    values: Callable[[_Resolved], tuple[object, ...] | None],
    schema: Mapping[str, type[pl.DataType]],
) -> dict[tuple[str, ...], pl.DataFrame]:
    """Way → its key columns and the columns of `schema`; of two rules of one key the later."""
    by_key: dict[tuple[str, ...], dict[tuple[int | str, ...], tuple[object, ...]]] = {}
    for one in limits:
        found = values(one)
        if found is not None:
            by_key.setdefault(one.way, {})[one.key] = found
    return {
        way: pl.DataFrame(
            [(*key, *found) for key, found in rows.items()],
            schema={**{name: _KEY[name] for name in way}, **schema},
            orient="row",
        )
        for way, rows in by_key.items()
    }
