"""What generated code calls while it runs: FHIRPath's functions on parsed JSON.

A FHIRPath collection has three forms here, so that the common case costs nothing:
None (empty), a JSON value (one item), or a list (any number of items; raw JSON arrays are used as they are
and may hold null, which counts as no item). `loose` in a parameter's name or text means any of the three.

Data of the wrong shape raises an EvaluationError whose message never holds a value of the data. Nothing
here knows about views or the compiler.
Semantics: https://hl7.org/fhirpath/N1/, https://sql-on-fhir.org/ig/latest/StructureDefinition-ViewDefinition.html.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from pipeline.sql_on_fhir.exact_numbers import ExactNumber

__all__ = [
    "FUNCTIONS",
    "EvaluationError",
    "NotAResource",
    "WrongType",
    "describe",
]

Json = Any


class EvaluationError(ValueError):
    """A path or view cannot be evaluated on this resource. The message holds no value of the data."""


class WrongType(EvaluationError):
    """A value's JSON type is not what the path or the column's declared type needs."""


class NotAResource(EvaluationError):
    """The line is not an object with a `resourceType`."""


_TYPE_NAMES: Final[dict[type, str]] = {
    bool: "a boolean",
    int: "a whole number",
    float: "a number with a decimal point",
    ExactNumber: "a number of many digits",
    str: "a string",
    dict: "an object",
    list: "an array",
    type(None): "null",
}


def describe(value: Json) -> str:
    """The JSON type of `value` in words; never the value."""
    return _TYPE_NAMES.get(value.__class__, "something that is not JSON")


def expected(what: str, value: Json) -> WrongType:
    return WrongType(f"expected {what}, found {describe(value)}")


# --- collections -------------------------------------------------------------------------------------------


def items(loose: Json) -> Sequence[Json]:
    """The items of a collection, without nulls."""
    if loose is None:
        return ()
    if loose.__class__ is not list:
        return (loose,)
    if None in loose:
        return [item for item in loose if item is not None]
    return loose


def items_or_null(loose: Json) -> Sequence[Json]:
    """The items; (None,) for an empty collection, from which every path of forEachOrNull gives null."""
    return items(loose) or (None,)


def single(loose: Json) -> Json:
    """The one item, or None. Raises EvaluationError where there are several."""
    found = items(loose)
    if len(found) > 1:
        raise EvaluationError(
            f"expected at most one value, found {len(found)}; use first(), a where(), or collection: true"
        )
    return found[0] if found else None


def children(loose: Json, name: str) -> Json:
    """The elements `name` of every item, arrays flattened."""
    if loose.__class__ is list and len(loose) == 1 and loose[0].__class__ is dict:
        return loose[0].get(name)  # most arrays in FHIR have one item: no list is made for them
    found: list[Json] = []
    for item in items(loose):
        if item.__class__ is not dict:
            raise expected(f"an object with the element '{name}'", item)
        child = item.get(name)
        if child.__class__ is list:
            found.extend(items(child))
        elif child is not None:
            found.append(child)
    return found


def choice(loose: Json, name: str, others: tuple[str, ...] = ()) -> Json:
    """The choice elements `name[x]` of every item, whatever their type. `others`: elements that only begin like it."""
    if loose.__class__ is dict and name not in "\n".join(loose):
        return []  # one search for all its elements
    found: list[Json] = []
    for item in items(loose):
        if item.__class__ is not dict:
            raise expected(f"an object with the element '{name}[x]'", item)
        for key in item:
            if name in key and key.startswith(name) and key[len(name) : len(name) + 1].isupper() and key not in others:
                found.extend(items(item[key]))
    return found


def choice_exists(loose: Json, name: str, others: tuple[str, ...] = ()) -> bool:
    """Whether a choice element `name[x]` is there, be it a primitive of which only an extension is (`_valueString`)."""
    if loose.__class__ is dict and name not in "\n".join(loose):
        return False  # one search for all its elements
    for item in items(loose):
        if item.__class__ is not dict:
            raise expected(f"an object with the element '{name}[x]'", item)
        for key, value in item.items():
            stem = key.removeprefix("_")
            if not stem.startswith(name) or stem in others:
                continue
            if stem[len(name) : len(name) + 1].isupper() and exists(value):
                return True
    return False


def element_or_choice(loose: Json, name: str, keys: Sequence[str]) -> Json:
    """The elements `name` of every item of which the type is not known; of one without it, the choice elements `keys`."""
    found: list[Json] = []
    for item in items(loose):
        if item.__class__ is not dict:
            raise expected(f"an object with the element '{name}'", item)
        for key in (name,) if name in item else keys:
            if key in item:
                found.extend(items(item[key]))
    return found


def any_exists(loose: Json, names: Sequence[str]) -> bool:
    """Whether an item has one of the elements, be it a primitive of which only an extension is (`_valueString`)."""
    for item in items(loose):
        if item.__class__ is not dict:
            raise expected(f"an object with the element '{names[0]}'", item)
        if any(exists(item.get(name)) or exists(item.get(f"_{name}")) for name in names):
            return True
    return False


class _Unfit:
    """Stands for an item that cannot have the element that is looked for: a comparison with it is an error."""

    def __init__(self, error: WrongType) -> None:
        self._error = error

    def __eq__(self, other: object) -> bool:
        raise self._error

    __hash__ = None  # type: ignore[assignment]  # only ever looked for in a list


def compared(loose: Json, name: str, is_single: bool = False) -> list[Json]:
    """The element `name` of each item, for `'text' in …`: what `where(name = 'text').exists()` looks at, in its order.

    As `=` has it, an array counts by its only item; `is_single`: there may be none.
    """
    if loose.__class__ is list and len(loose) == 1 and loose[0].__class__ is dict:
        child = loose[0].get(name)
        if child.__class__ is not list:
            return [child]  # most arrays in FHIR have one item
    found: list[Json] = []
    for item in items(loose):
        try:
            child = item.get(name) if item.__class__ is dict else children(item, name)
        except WrongType as error:
            found.append(_Unfit(error))
            continue
        if child.__class__ is list:
            if is_single:
                refuse_shape(child, "a single value")
            values = items(child)
            child = values[0] if len(values) == 1 else None
        found.append(child)
    return found


def extensions(loose: Json, url: str | None) -> list[Json]:
    """The extensions of every item, those with `url` alone where it is given."""
    found = items(children(loose, "extension"))
    return [item for item in found if url is None or _url(item) == url]


def _url(extension: Json) -> Json:
    url = extension.get("url") if extension.__class__ is dict else None
    return url if url.__class__ is str else single(children(extension, "url"))


def primitive_extensions(parent: Json, name: str, url: str | None) -> list[Json]:
    """As `extensions`, of the elements `name` of `parent`: of a primitive they stand in `_name`."""
    found = [item for item in items(children(parent, name)) if item.__class__ in {dict, list}]
    return extensions(found, url) + extensions(children(parent, f"_{name}"), url)


def first(loose: Json) -> Json:
    if loose.__class__ is list and loose and loose[0] is not None:
        return loose[0]
    found = items(loose)
    return found[0] if found else None


def last(loose: Json) -> Json:
    found = items(loose)
    return found[-1] if found else None


def item_at(loose: Json, position: Json) -> Json:
    if position is None:
        return None
    if position.__class__ is not int:
        raise expected("a whole number as index", position)
    found = items(loose)
    return found[position] if 0 <= position < len(found) else None


def exists(loose: Json) -> bool:
    return bool(items(loose))


def count(loose: Json) -> int:
    return len(items(loose))


def union(left: Json, right: Json) -> list[Json]:
    """Both collections without duplicates, in order of appearance."""
    merged: list[Json] = []
    for item in (*items(left), *items(right)):
        if not any(same(item, known) for known in merged):
            merged.append(item)
    return merged


def contained_in(left: Json, right: Json) -> bool | None:
    searched = single(left)
    return None if searched is None else any(same(searched, item) for item in items(right))


def of_resource_type(loose: Json, resource_type: str) -> list[Json]:
    return [item for item in items(loose) if single(children(item, "resourceType")) == resource_type]


def repeat(start: Json, steps: Sequence[Callable[[Json], Json]]) -> list[Json]:
    """Everything that the steps reach from `start`, again and again, depth first, without `start` itself."""

    def reached(node: Json) -> list[Json]:
        return [child for step in steps for child in items(step(node))]

    found: list[Json] = []
    waiting = [child for node in items(start) for child in reached(node)][::-1]
    while waiting:
        node = waiting.pop()
        found.append(node)
        if node.__class__ is dict:
            waiting.extend(reversed(reached(node)))
    return found


# --- logic and comparison ----------------------------------------------------------------------------------


def truth(loose: Json) -> bool | None:
    """A collection as a condition: true, false or empty (None). Anything but a boolean is refused."""
    value = single(loose)
    if value is None or value.__class__ is bool:
        return value
    raise expected("a boolean", value)


def negate(loose: Json) -> bool | None:
    value = truth(loose)
    return None if value is None else not value


def same(left: Json, right: Json) -> bool:
    """Whether two JSON values are equal; unlike in Python, true is not 1."""
    if (left.__class__ is bool) is not (right.__class__ is bool):
        return False
    return bool(left == right)


def equal(left: Json, right: Json) -> bool | None:
    """`=`: empty where a side is empty, else item by item."""
    lefts, rights = items(left), items(right)
    if not lefts or not rights:
        return None
    return len(lefts) == len(rights) and all(map(same, lefts, rights))


def unequal(left: Json, right: Json) -> bool | None:
    found = equal(left, right)
    return None if found is None else not found


def equal_time(left: Json, right: Json) -> bool | None:
    """`=` between dates or times: instants in different zones may be equal, and a comparison that the
    precision leaves open (2024 = 2024-05) is empty."""
    order = _compare_loose(left, right)
    return None if order is None else order == 0


def unequal_time(left: Json, right: Json) -> bool | None:
    order = _compare_loose(left, right)
    return None if order is None else order != 0


def less(left: Json, right: Json) -> bool | None:
    order = _compare_loose(left, right)
    return None if order is None else order < 0


def less_or_equal(left: Json, right: Json) -> bool | None:
    order = _compare_loose(left, right)
    return None if order is None else order <= 0


def greater(left: Json, right: Json) -> bool | None:
    order = _compare_loose(left, right)
    return None if order is None else order > 0


def greater_or_equal(left: Json, right: Json) -> bool | None:
    order = _compare_loose(left, right)
    return None if order is None else order >= 0


def _compare_loose(left: Json, right: Json) -> int | None:
    first_value, second_value = single(left), single(right)
    if first_value is None or second_value is None:
        return None
    if _is_number(first_value) and _is_number(second_value):
        return int(first_value > second_value) - int(first_value < second_value)
    if first_value.__class__ is not str or second_value.__class__ is not str:
        raise WrongType(f"cannot compare {describe(first_value)} with {describe(second_value)}")
    return _compare_texts(first_value, second_value)


def _is_number(value: Json) -> bool:
    return value.__class__ is int or value.__class__ is float or value.__class__ is ExactNumber


_DATE: Final = re.compile(
    r"(\d{4})(?:-(\d\d)(?:-(\d\d)(?:T(\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?(Z|[+-]\d\d:\d\d)?)?)?)?", re.ASCII
)
_TIME: Final = re.compile(r"(\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?", re.ASCII)


def _compare_texts(left: str, right: str) -> int | None:
    """Dates by time, other texts by code point. None where the precision leaves the order open."""
    first_match, second_match = _DATE.fullmatch(left), _DATE.fullmatch(right)
    if first_match is None or second_match is None:
        return (left > right) - (left < right)
    first_parts, second_parts = _date_parts(first_match), _date_parts(second_match)
    if first_parts.zoned is not second_parts.zoned and _to_the_hour(first_parts, second_parts):
        return None
    for one, other in zip(first_parts.fields, second_parts.fields, strict=False):
        if one != other:
            return 1 if one > other else -1
    return 0 if len(first_parts.fields) == len(second_parts.fields) else None


class _DateParts:
    """Year, month, … as far as given; seconds with their fraction; in UTC where there is a zone."""

    def __init__(self, fields: tuple[float, ...], *, zoned: bool) -> None:
        self.fields = fields
        self.zoned = zoned


def _to_the_hour(left: _DateParts, right: _DateParts) -> bool:
    return len(left.fields) > 3 and len(right.fields) > 3


def _date_parts(match: re.Match[str]) -> _DateParts:
    year, month, day, hour, minute, second, fraction, zone = match.groups()
    if hour is None:
        return _DateParts(tuple(int(part) for part in (year, month, day) if part is not None), zoned=False)
    parts = [int(year), int(month), int(day), int(hour), int(minute)]
    if zone is not None:
        parts = _in_utc(parts, zone)
    # FHIRPath: seconds and their fraction are one precision.
    seconds = () if second is None else (float(f"{second}.{fraction or '0'}"),)
    return _DateParts((*parts, *seconds), zoned=zone is not None)


def _in_utc(parts: list[int], zone: str) -> list[int]:
    try:
        local = datetime(*parts)  # type: ignore[arg-type]  # noqa: DTZ001 - five integers; the zone is subtracted below
        minutes = 0 if zone == "Z" else int(f"{zone[0]}1") * (int(zone[1:3]) * 60 + int(zone[4:]))
        moment = local - timedelta(minutes=minutes)
    except (ValueError, OverflowError) as error:
        raise EvaluationError("a date or time is outside the calendar") from error
    return [moment.year, moment.month, moment.day, moment.hour, moment.minute]


# --- arithmetic and text -----------------------------------------------------------------------------------


def _numbers(left: Json, right: Json) -> tuple[Json, Json] | None:
    one, other = single(left), single(right)
    if one is None or other is None:
        return None
    for value in (one, other):
        if not _is_number(value):
            raise expected("a number", value)
    return one, other


def add(left: Json, right: Json) -> Json:
    """`+`: sum of numbers, or two strings in a row."""
    one, other = single(left), single(right)
    if one.__class__ is str and other.__class__ is str:
        return one + other
    pair = _numbers(one, other)
    return None if pair is None else pair[0] + pair[1]


def subtract(left: Json, right: Json) -> Json:
    pair = _numbers(left, right)
    return None if pair is None else pair[0] - pair[1]


def multiply(left: Json, right: Json) -> Json:
    pair = _numbers(left, right)
    return None if pair is None else pair[0] * pair[1]


def divide(left: Json, right: Json) -> Json:
    """`/`; empty for a division by zero, as FHIRPath says."""
    pair = _numbers(left, right)
    return None if pair is None or pair[1] == 0 else pair[0] / pair[1]


def minus(loose: Json) -> Json:
    return subtract(0, loose)


def text(loose: Json) -> str | None:
    value = single(loose)
    if value is None or value.__class__ is str:
        return value
    raise expected("a string", value)


def concatenate(left: Json, right: Json) -> str:
    """`&`: like `+` on strings, an empty side counting as ''."""
    return (text(left) or "") + (text(right) or "")


def join(loose: Json, separator: Json = None) -> str | None:
    """The strings of a collection as one; nothing for an empty one, as the specification's tests have it."""
    parts = items(loose)
    for part in parts:
        if part.__class__ is not str:
            raise expected("strings", part)
    return (text(separator) or "").join(parts) if parts else None


def starts_with(loose: Json, other: Json) -> bool | None:
    value, part = text(loose), text(other)
    return None if value is None or part is None else value.startswith(part)


def ends_with(loose: Json, other: Json) -> bool | None:
    value, part = text(loose), text(other)
    return None if value is None or part is None else value.endswith(part)


def contains_text(loose: Json, other: Json) -> bool | None:
    value, part = text(loose), text(other)
    return None if value is None or part is None else part in value


def lower(loose: Json) -> str | None:
    value = text(loose)
    return None if value is None else value.lower()


def upper(loose: Json) -> str | None:
    value = text(loose)
    return None if value is None else value.upper()


# --- SQL on FHIR's own functions ---------------------------------------------------------------------------

_REFERENCE: Final = re.compile(r"(?:^|.*/)([A-Z][A-Za-z]+)/([^/#?|]+)(?:/_history/[^/]+)?")
_URN: Final = re.compile(r"urn:(?:uuid|oid):(.+)")


def resource_key(loose: Json) -> Json:
    """getResourceKey(): the resource's id."""
    return single(children(loose, "id"))


def reference_keys(loose: Json, resource_type: str | None = None) -> list[str]:
    """getReferenceKey([type]): the id in each Reference, equal to its target's getResourceKey().

    Relative and absolute references, versions and urn:uuid are understood. A reference to another type than
    `resource_type`, to a contained resource, or by identifier alone gives none.
    """
    keys: list[str] = []
    for item in items(loose):
        reference = text(children(item, "reference"))
        key = None if reference is None else _reference_key(reference, item.get("type"), resource_type)
        if key is not None:
            keys.append(key)
    return keys


def _reference_key(reference: str, declared_type: Json, resource_type: str | None) -> str | None:
    match = _REFERENCE.fullmatch(reference)
    if match is not None:
        return match.group(2) if resource_type in {None, match.group(1)} else None
    match = _URN.fullmatch(reference)
    if match is not None and resource_type in {None, declared_type}:
        return match.group(1)
    return None


# --- boundaries: https://hl7.org/fhirpath/2025Jan/#lowboundaryprecision-integer-decimal--date--datetime--time


def low_boundary(loose: Json, kind: str = "") -> Json:
    """lowBoundary(): the least value that the given precision admits.

    `kind` is `date` where the element is a date; other date-like strings count as dateTime. Numbers keep the
    digits that JSON parsing leaves (1.0 and 1.00 are the same).
    """
    return _boundary(loose, kind, high=False)


def high_boundary(loose: Json, kind: str = "") -> Json:
    """highBoundary(): the greatest value that the given precision admits; see `low_boundary`."""
    return _boundary(loose, kind, high=True)


def _boundary(loose: Json, kind: str, *, high: bool) -> Json:
    value = single(loose)
    if value is None:
        return None
    if _is_number(value):
        return _number_boundary(value, high=high)
    if value.__class__ is not str:
        raise expected("a number, date, dateTime or time", value)
    if _TIME.fullmatch(value):
        return _time_boundary(value, high=high)
    match = _DATE.fullmatch(value)
    if match is None:
        raise WrongType("expected a number, date, dateTime or time, found another string")
    return _date_boundary(match, kind, high=high)


def _number_boundary(value: float, *, high: bool) -> float:
    number = Decimal(repr(value))
    half = Decimal((0, (5,), int(number.as_tuple().exponent) - 1))
    return float(number + half if high else number - half)


def _time_boundary(value: str, *, high: bool) -> str:
    hour_minute, second, fraction = value[:5], value[6:8], value[9:]
    return f"{hour_minute}:{second or ('59' if high else '00')}.{fraction.ljust(3, '9' if high else '0')}"


def _date_boundary(match: re.Match[str], kind: str, *, high: bool) -> str:
    year, month, day = match.group(1, 2, 3)
    month = month or ("12" if high else "01")
    if day is None:
        try:
            day = f"{calendar.monthrange(int(year), int(month))[1]:02}" if high else "01"
        except (ValueError, IndexError) as error:
            raise EvaluationError("a date is outside the calendar") from error
    date = f"{year}-{month}-{day}"
    if kind == "date":
        return date
    hour, minute, second, fraction, zone = match.group(4, 5, 6, 7, 8)
    clock = f"{hour}:{minute}" + (f":{second}" if second else "") + (f".{fraction}" if fraction else "")
    clock = clock if hour else ("23:59" if high else "00:00")
    # The earliest midnight on Earth is at +14:00, the latest at -12:00.
    return f"{date}T{_time_boundary(clock, high=high)}{zone or ('-12:00' if high else '+14:00')}"


# --- declared types of columns -----------------------------------------------------------------------------


def as_string(loose: Json) -> str | None:
    value = single(loose)
    if value is None or value.__class__ is str:
        return value
    raise expected("a string", value)


def as_integer(loose: Json) -> int | None:
    value = single(loose)
    if value is None or value.__class__ is int:
        return value
    raise expected("a whole number", value)


def as_number(loose: Json) -> float | None:
    value = single(loose)
    if value is None or value.__class__ is float or value.__class__ is int or value.__class__ is ExactNumber:
        return value
    raise expected("a number", value)


def as_boolean(loose: Json) -> bool | None:
    return truth(loose)


def as_object(loose: Json) -> dict[str, Json] | None:
    value = single(loose)
    if value is None or value.__class__ is dict:
        return value
    raise expected("an object", value)


#: What JSON has that is not a primitive.
COMPOUND: Final = frozenset({list, dict})


def refuse_shape(value: Json, what: str) -> None:
    """An element of another shape than FHIR R4 gives it. Raises WrongType."""
    raise expected(what, value)


def refuse_arrays(loose: Json, name: str) -> None:
    """Raises WrongType where an item has an array of the element `name`, of which there is at most one."""
    for item in items(loose):
        if item.__class__ is dict and item.get(name).__class__ is list:
            refuse_shape(item[name], "a single value")


def other_resource(resource: Json, resource_type: str) -> None:
    """A line that the view is not about: nothing where it is another type of resource, else an error."""
    if resource.__class__ is not dict:
        raise NotAResource(f"expected an object with resourceType {resource_type}, found {describe(resource)}")
    found = resource.get("resourceType")
    if found.__class__ is not str:
        raise NotAResource(f"expected the name of a resource type in resourceType, found {describe(found)}")


# The global names of generated code.
FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {
    function.__name__: function
    for function in (
        add, any_exists, as_boolean, as_integer, as_number, as_object, as_string, children, choice, choice_exists, compared,
        concatenate, contained_in, contains_text, count, divide, element_or_choice, ends_with, equal, equal_time, exists,
        extensions,
        first, greater, greater_or_equal, high_boundary, item_at, items, items_or_null, join, last, less,
        less_or_equal, low_boundary, lower, minus, multiply, negate, of_resource_type, other_resource,
        primitive_extensions, reference_keys, refuse_arrays,
        refuse_shape, repeat, resource_key, same, single, starts_with, subtract, text,
        truth, unequal, unequal_time, union, upper,
    )
}  # fmt: skip
