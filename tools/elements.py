"""FHIRPaths of mappings in the words of FHIR's own pages: `onset.ofType(dateTime)` is onsetDateTime.

Here is how a path is named, how a condition reads, and what a resource has at a named element; nothing is evaluated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["condition_text", "elements_of", "leaves_at"]

_EXTENSION = re.compile(r"extension\('(?:[^']*/)?([^'/]+)'\)")
_OF_TYPE = re.compile(r"\.ofType\((\w)(\w*)\)")
#: Contained resources are one element, whatever their type.
_CONTAINED = "contained.ofType(Observation)"
_BETWEEN = re.compile(r" (?:and|or|\||>|<|=|!=) ")
_WITHOUT = re.compile(r"\.(?:\$this|%rowIndex|\{\})$")


def elements_of(path: str) -> tuple[str, ...]:
    """The elements that a path reads: of `iif` all that it chooses from, of `a | b` and of conditions each.

    An extension is `extension us-core-race.ombCategory`, by the ends of the URLs.
    """
    path = path.strip()
    choice = re.fullmatch(r"(.*?)iif\((.*)\)", path)
    parts = _split(path, _BETWEEN)
    if choice:
        parts = [choice[1] + part.strip() for part in _split(choice[2], re.compile(","))[1:]]
    if len(parts) > 1:
        return tuple(dict.fromkeys(name for part in parts for name in elements_of(part)))
    if path.startswith("(") and path.endswith(")"):
        return elements_of(path[1:-1])
    extensions = _EXTENSION.findall(path)
    if extensions:
        return ("extension " + ".".join(extensions),)
    path = path.replace(_CONTAINED, "contained")
    path = _OF_TYPE.sub(lambda match: match[1].upper() + match[2], path)
    path = _WITHOUT.sub("", _without_calls(path)).removesuffix(".coding").strip(".")
    return (path,) if re.match(r"[A-Za-z]", path) else ()


def _split(text: str, between: re.Pattern[str]) -> list[str]:
    """The parts between separators that stand in no brackets and no quotes."""
    found, depth, quoted, start, place = [], 0, False, 0, 0
    while place < len(text):
        character = text[place]
        quoted ^= character == "'"
        depth += 0 if quoted else (character in "([") - (character in ")]")
        match = between.match(text, place) if depth == 0 and not quoted else None
        if match:
            found.append(text[start:place])
            start = place = match.end()
        else:
            place += 1
    return [*found, text[start:]]


def _without_calls(path: str) -> str:
    """`a.where(b.exists()).c.first()` → `a.c`."""
    names = _split(path, re.compile(r"\."))
    return ".".join(name for name in names if "(" not in name)


_IS_CODE = re.compile(
    r"(?P<path>[\w.]+?)(?:\.coding)?\.where\((?P<codes>(?:[^()]|\(\))*)\)\.(?P<kind>exists|empty)\(\)(?P<not>\.not\(\))?"
)
_IS_THERE = re.compile(r"(?P<path>[\w.()]+?)\.(?P<kind>exists|empty)\(\)")
_EQUALS = re.compile(r"(?P<path>[\w.]+) (?P<kind>!?=) '(?P<code>[^']*)'")


def condition_text(path: str) -> str:
    """A boolean path as words: `category is laboratory`; one that has no such words stays a path."""
    parts = [_condition(part) for part in _split(path, re.compile(" and "))]
    if all(parts):
        return " and ".join(str(part) for part in parts)
    return f"`{path}`"


def _condition(part: str) -> str | None:
    part = part.strip()
    if re.fullmatch(r"[\w.]+(?:\.ofType\(\w+\))?", part):
        return f"{elements_of(part)[0]} is true"
    match = _IS_CODE.fullmatch(part)
    if match:
        codes = re.findall(r"(?:code|\$this|type) = '([^']*)'", match["codes"])
        is_so = (match["kind"] == "exists") != bool(match["not"])
        if not codes:
            return f"{match['path']} is {'' if is_so else 'not '}there"
        return f"{match['path']} is {'' if is_so else 'not '}{' or '.join(codes)}"
    equal = [_EQUALS.fullmatch(each) for each in part.split(" or ")]
    if all(equal):
        first = equal[0]
        assert first
        codes = [each["code"] for each in equal if each]
        return f"{first['path']} is {'not ' if first['kind'] == '!=' else ''}{' or '.join(codes)}"
    match = _IS_THERE.fullmatch(part)
    if match:
        name = ", ".join(elements_of(match["path"])) or match["path"]
        return f"{name} is {'' if match['kind'] == 'exists' else 'not '}there"
    return None


def leaves_at(resource: Mapping[str, Any], element: str) -> list[tuple[str, str]]:
    """(path within the element, value) of what a resource has at an element that `elements_of` named."""
    nodes: list[Any] = [resource]
    if element.startswith("extension "):
        for name in element.removeprefix("extension ").split("."):
            nodes = [
                each
                for node in nodes
                for each in (node.get("extension") or () if isinstance(node, Mapping) else ())
                if isinstance(each, Mapping) and str(each.get("url", "")).rsplit("/", 1)[-1] == name
            ]
    else:
        for name in element.split("."):
            nodes = [each for node in nodes for each in _children(node, name)]
    return [leaf for node in nodes for leaf in _leaves("", node)]


def _children(node: Any, name: str) -> Iterator[Any]:
    """Parts of that name; of `value[x]` those of all types."""
    if isinstance(node, Sequence) and not isinstance(node, str):
        for each in node:
            yield from _children(each, name)
    elif isinstance(node, Mapping):
        if name in node:
            yield node[name]
        elif name.endswith("[x]"):
            yield from (each for key, each in node.items() if re.fullmatch(rf"{name[:-3]}[A-Z]\w*", key))


_NO_VALUES = frozenset({"system", "url", "id", "meta"})


def _leaves(path: str, node: Any) -> Iterator[tuple[str, str]]:
    if isinstance(node, Mapping):
        for name, each in node.items():
            if name not in _NO_VALUES:
                yield from _leaves(f"{path}.{name}".strip("."), each)
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for each in node:
            yield from _leaves(path, each)
    else:
        yield path, str(node)
