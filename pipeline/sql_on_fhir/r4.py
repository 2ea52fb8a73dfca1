"""FHIR R4's elements by type, and where a path names one that does not exist.

`r4_elements.csv` holds, for all resource types and data types, the names of their elements with the complex types of each
(`[x]`: one of several types, `*`: an array). Source: HL7 FHIR R4 (4.0.1), CC0. What is not in it is not judged: a path
into a type that is unknown here, or that may lead to any resource, has no problems. Bundle is left out, because who unpacks
one may add marks of their own; it has no choice elements.
"""

from __future__ import annotations

import csv
import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from pipeline.sql_on_fhir.fhirpath import Binary, Call, Constant, Index, Member, Negative, Node, OfType, This

__all__ = [
    "ElementProblem",
    "SingleElement",
    "Types",
    "any_of",
    "are_known",
    "choice_keys",
    "element_problems",
    "elements_of",
    "has_choice",
    "is_array",
    "known_types",
    "other_names",
    "repeated_types",
    "single_element",
]

#: The types that a path may lead to; None: not known. The empty text and names in lower case are primitives.
Types = frozenset[str] | None

_PRIMITIVE: Types = frozenset({""})
_EXTENSION: Types = frozenset({"Extension"})
_OF_EVERY_ELEMENT: Mapping[str, Types] = {"id": _PRIMITIVE, "extension": _EXTENSION, "modifierExtension": _EXTENSION}
_OF_EVERY_RESOURCE: Mapping[str, Types] = {
    "implicitRules": _PRIMITIVE,
    "language": _PRIMITIVE,
    "meta": frozenset({"Meta"}),
    "text": frozenset({"Narrative"}),
    "contained": None,
}
_SAME_TYPES = frozenset({"where", "first", "last", "single"})


@dataclass(frozen=True)
class ElementProblem:
    """An element that does not exist: what is wrong, and the 0-based position in the path."""

    reason: str
    position: int


@dataclass(frozen=True)
class _Type:
    elements: Mapping[str, Types]
    choices: frozenset[str]
    arrays: frozenset[str]


@cache
def _types() -> Mapping[str, _Type]:
    found = {}
    with Path(__file__).with_name("r4_elements.csv").open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            elements: dict[str, Types] = {}
            choices, arrays = set(), set()
            for item in row["elements"].split():
                name, _, types = item.partition(":")
                if name.endswith("*"):
                    name = name.removesuffix("*")
                    arrays.add(name)
                if name.endswith("[x]"):
                    name = name.removesuffix("[x]")
                    choices.add(name)
                elements[name] = None if types == "Resource" else frozenset(types.split("|"))
            found[row["type"]] = _Type(elements, frozenset(choices), frozenset(arrays))
    return found


@cache
def _data_types() -> frozenset[str]:
    """What is an element's type: the others are resources."""
    return frozenset(
        name for known in _types().values() for types in known.elements.values() for name in types or () if name
    )


def known_types() -> frozenset[str]:
    """The resource types, data types and inner types whose elements are known here."""
    return frozenset(_types())


def elements_of(type_name: str) -> Mapping[str, Types] | None:
    """The elements of a resource or complex type and the types of each; None for a type that is not known here."""
    known = _types().get(type_name)
    if known is None:
        return None
    of_resources = {} if type_name in _data_types() else _OF_EVERY_RESOURCE
    return {**_OF_EVERY_ELEMENT, **of_resources, **known.elements}


def has_choice(owners: Types, name: str) -> bool:
    """Whether `name` is the name of a choice element (`value` for `value[x]`) of one of the types; False where none is known."""
    known = _types()
    return any(name in known[owner].choices for owner in owners or () if owner in known)


def are_known(owners: Types) -> bool:
    """Whether it is known which elements an owner has: a primitive has none of its own."""
    return bool(owners) and all(owner in _types() or not owner[:1].isupper() for owner in owners or ())


def other_names(owners: Types, name: str) -> tuple[str, ...]:
    """Elements of the types whose names only begin like those of the choice element `name` (`amountText` of `amount[x]`)."""
    known = [_types()[owner] for owner in owners or () if owner in _types()]
    return tuple(
        sorted({other for each in known for other in each.elements if other != name and other.startswith(name)})
    )


@cache
def choice_keys(name: str) -> tuple[str, ...]:
    """How JSON may write the choice element `name`, whichever type has it (`onsetAge`, …); () where none has it."""
    kinds = {
        kind for known in _types().values() if name in known.choices for kind in known.elements[name] or ("string",)
    }
    return tuple(sorted(name + (kind or "string")[:1].upper() + (kind or "string")[1:] for kind in kinds))


def is_array(type_name: str, element: str) -> bool:
    """Whether an element of a type that is known here may be there more than once."""
    return element in _types()[type_name].arrays or element in {"contained", "extension", "modifierExtension"}


@dataclass(frozen=True)
class SingleElement:
    """What R4 says about an element of some types."""

    #: the types that it can have
    types: Types
    #: it is there at most once, whichever type has it
    is_single: bool = False
    #: its types are complex: an object in JSON
    is_complex: bool = False


def single_element(owners: Types, name: str) -> SingleElement:
    """The element `name`, as JSON writes it (`valueQuantity`), of what can have the types `owners` (None: not known)."""
    if not owners or not all(owner[:1].isupper() and elements_of(owner) is not None for owner in owners):
        return SingleElement(None)
    each = {owner: _element(owner, name) for owner in owners}
    having = [owner for owner, types in each.items() if types != frozenset()]
    types = any_of(each[owner] for owner in having) if having else None
    if not types or any(is_array(owner, name) for owner in having):
        return SingleElement(types)
    complex_types = {kind[:1].isupper() for kind in types}
    if len(complex_types) > 1:
        return SingleElement(types)
    return SingleElement(types, is_single=True, is_complex=complex_types == {True})


def element_problems(node: Node, resource_type: str, this: Types) -> tuple[list[ElementProblem], Types]:
    """What is wrong with the elements of a parsed path that starts at `this`, and the types that it leads to."""
    walk = _Walk(resource_type)
    return walk.problems, walk.types(node, this)


def repeated_types(nodes: Sequence[Node], resource_type: str, this: Types) -> Types:
    """The types of all that is reached from `this` by any of the paths, again and again; a path that leads nowhere from
    there may do so from what another has reached."""
    found: Types = frozenset()
    while True:
        start = any_of((this, found))
        walks = [element_problems(node, resource_type, start) for node in nodes]
        reached = any_of(frozenset() if problems else types for problems, types in walks)
        if reached is None or reached == found:
            return reached
        found = reached


@dataclass
class _Walk:
    resource_type: str
    problems: list[ElementProblem] = field(default_factory=list)

    def types(self, node: Node, this: Types) -> Types:
        """The types that `node` leads to from `this`; problems are collected on the way."""
        found = _PRIMITIVE
        match node:
            case This():
                found = this
            case Constant(name="resource" | "rootResource"):
                found = frozenset({self.resource_type})
            case Member():
                found = self._member(node, this)
            case OfType():
                found = self._of_type(node, this)
            case Index():
                self.types(node.position, this)
                found = self.types(node.target, this)
            case Call():
                found = self._call(node, this)
            case Binary():
                both = (self.types(node.left, this), self.types(node.right, this))
                found = any_of(both) if node.operator == "|" else _PRIMITIVE
            case Negative():
                self.types(node.operand, this)
        return found

    def _member(self, node: Member, this: Types) -> Types:
        if node.target is None and node.name == self.resource_type:
            return this
        owners = this if node.target is None else self.types(node.target, this)
        if owners is None:
            return None
        found = [types for types in (_element(owner, node.name) for owner in sorted(owners)) if types != frozenset()]
        if found:
            return any_of(found)
        named = sorted(owner for owner in owners if owner[:1].isupper())
        owner = " or ".join(named) if named else "a primitive"
        known = {name for item in named for name in elements_of(item) or ()}
        close = difflib.get_close_matches(node.name, sorted(known), 1)
        advice = f"; did you mean '{close[0]}'?" if close else ""
        self.problems.append(
            ElementProblem(f"{owner} has no element '{node.name}' in FHIR R4{advice}", node.end - len(node.name))
        )
        return None

    def _of_type(self, node: OfType, this: Types) -> Types:
        types = this if node.target is None else self.types(node.target, this)
        narrowed = frozenset({node.type_name})
        if types is None or node.type_name in types or types <= {""}:
            return narrowed
        if node.type_name[:1].upper() + node.type_name[1:] in {name[:1].upper() + name[1:] for name in types}:
            return narrowed
        allowed = ", ".join(sorted(types))
        self.problems.append(
            ElementProblem(f"the element cannot be of type {node.type_name} in FHIR R4, only {allowed}", node.end - 1)
        )
        return None

    def _call(self, node: Call, this: Types) -> Types:
        target = this if node.target is None else self.types(node.target, this)
        inner = target if node.name in {"where", "select", "exists", "all", "repeat"} else this
        arguments = [self.types(argument, inner) for argument in node.arguments]
        if node.name in _SAME_TYPES:
            return target
        if node.name == "repeat" and arguments:
            return repeated_types(node.arguments, self.resource_type, inner)
        if node.name == "select":
            return arguments[0] if arguments else None
        if node.name == "iif":
            return any_of(arguments[1:])
        return _EXTENSION if node.name == "extension" else _PRIMITIVE


def _element(owner: str, name: str) -> Types:
    """The types of an element of `owner`; the empty set where it has none of that name, None where nothing is known."""
    elements = elements_of(owner)
    if elements is None:
        is_complex = owner[:1].isupper()
        return None if is_complex else _OF_EVERY_ELEMENT.get(name, frozenset())
    if name in elements:
        return elements[name]
    for choice in _types()[owner].choices:  # the name as JSON writes it: valueQuantity
        for type_name in elements[choice] or ():
            if name == choice + type_name[:1].upper() + type_name[1:]:
                return frozenset({type_name})
    return frozenset()


def any_of(found: Iterable[Types]) -> Types:
    """What can have the types of any of several; None where those of one are not known."""
    together: frozenset[str] = frozenset()
    for types in found:
        if types is None:
            return None
        together |= types
    return together
