"""What the small worlds of histories of nights have in common: how a night is written, and the files that it makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["Night", "files_of_night", "night"]

#: A night: resource → version.
Night = Mapping[str, str]


def night(text: str) -> dict[str, str]:
    """`p1 e1 o1:B` → resource → version (A unless it says so)."""
    words = [word.partition(":") for word in text.split()]
    return {name: version or "A" for name, _, version in words}


def files_of_night(
    types: Mapping[str, str], resource: Callable[[str, str, str], dict[str, Any]], worlds: Mapping[str, Night]
) -> dict[str, list[dict[str, Any]]]:
    """Type → the resources of all worlds (name → what it holds) on one night; also of types of which there are none.

    `types`: resource → its type; `resource`: (world, resource, version) → FHIR.
    """
    files: dict[str, list[dict[str, Any]]] = {kind: [] for kind in types.values()}
    for world, there in worlds.items():
        for name, version in there.items():
            files[types[name]].append(resource(world, name, version))
    return files
