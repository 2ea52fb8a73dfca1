"""What is wrong with a setting, in our words: which shape it must have, never what it holds, which may be a secret.

The rules themselves are those of `pipeline.core.settings`; pydantic finds what breaks them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic_core import ErrorDetails

__all__ = ["control_characters", "problem", "setting_name"]

_TEXT = "must be text; a number, yes or no, or a date stands in quotes"
_WHOLE_NUMBER = "must be a whole number"
_NUMBER = "must be a number"
_KEYS_AND_VALUES = "must be keys and values"
#: By the beginning of pydantic's type of an error, longest first.
_SHAPES = {
    "string_type": _TEXT,
    "string_unicode": _TEXT,
    "string_pattern_mismatch": "must be of the form {pattern}",
    "path_type": "must be the path of a file or folder, as text",
    "tuple_type": "must be a list, such as [first, second]",
    "bool_": "must be true or false",
    "int_": _WHOLE_NUMBER,
    "float_": _NUMBER,
    "finite_number": _NUMBER,
    "date_": "must be a date such as 2024-03-31",
    "enum": "must be one of {expected}",
    "literal_error": "must be one of {expected}",
    "greater_than_equal": "must be {ge:g} or more",
    "greater_than": "must be more than {gt:g}",
    "less_than_equal": "must be {le:g} or less",
    "less_than": "must be less than {lt:g}",
    "union_tag_invalid": "{discriminator} must be one of {expected_tags}",
    "union_tag_not_found": "{discriminator} is missing",
    "model_": _KEYS_AND_VALUES,
    "dict_": _KEYS_AND_VALUES,
    "mapping_": _KEYS_AND_VALUES,
    "invalid_key": "keys must be text",
    "missing": "is missing",
    "extra_forbidden": "is not known",
}


def problem(item: ErrorDetails) -> str:
    """What is wrong, such as `must be a whole number`; the words of our own rules as they are."""
    if item["type"] == "value_error":
        return item["msg"].removeprefix("Value error, ")
    shapes = [name for name in _SHAPES if item["type"].startswith(name)]
    if not shapes:
        return "has no value that can be used"
    return _SHAPES[max(shapes, key=len)].format(**item.get("ctx", {}))


def setting_name(location: Sequence[object]) -> str:
    """`mapping.notes`, `groups.0`: keys and positions (from 0); empty for what is of no one setting."""
    return ".".join(str(part) for part in location if part != "[key]")


def control_characters(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of texts that hold a line break or another control character: no setting does, and few programs show it."""
    if isinstance(value, str) and any(ord(letter) < 32 or ord(letter) == 127 for letter in value):
        yield path
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from control_characters(inner, (*path, str(key)))
    elif isinstance(value, list):
        for position, inner in enumerate(value):
            yield from control_characters(inner, (*path, str(position)))
