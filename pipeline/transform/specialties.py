"""What a professional's resources say of their specialty and number, whatever they call the code systems of these.

Converters of view columns; `canonical` is `pipeline.transform.mapping.systems.SystemNames.canonical`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["by_taxonomy", "npi", "of_role"]

TAXONOMY = "http://nucc.org/provider-taxonomy"
NPI = "http://hl7.org/fhir/sid/us-npi"

_Made = TypeVar("_Made")
_Canonical = Callable[[str], str]


def by_taxonomy(canonical: _Canonical, make: Callable[[dict[str, Any]], _Made | None]) -> Callable[[Any], _Made | None]:
    """Converter CodeableConcept or array of them → what `make` makes of the first with a code of the provider taxonomy."""

    def convert(concepts: Any) -> _Made | None:
        found = next((concept for concept in _several(concepts) if _has_taxonomy(concept, canonical)), None)
        return make(found) if found else None

    return convert


def of_role(canonical: _Canonical, make: Callable[[dict[str, Any]], str | None]) -> Callable[[Any], str | None]:
    """Converter PractitionerRole → what `make` makes of its first specialty, else of a code of the provider taxonomy."""
    by_code = by_taxonomy(canonical, make)

    def convert(role: dict[str, Any]) -> str | None:
        named = _several(role.get("specialty"))
        return make(named[0]) if named else by_code(role.get("code"))

    return convert


def npi(canonical: _Canonical) -> Callable[[Any], str | None]:
    """Converter Identifier or array of them → the first national provider number."""

    def convert(identifiers: Any) -> str | None:
        for identifier in _several(identifiers):
            system, value = identifier.get("system"), identifier.get("value")
            if system.__class__ is str and value is not None and canonical(system) == NPI:
                if value.__class__ is not str:
                    raise ValueError("expected a string")
                return str(value)
        return None

    return convert


def _several(found: Any) -> list[dict[str, Any]]:
    if found is None:
        return []
    return found if found.__class__ is list else [found]


def _has_taxonomy(concept: dict[str, Any], canonical: _Canonical) -> bool:
    systems = (coding.get("system") for coding in concept.get("coding") or ())
    return any(system.__class__ is str and canonical(system) == TAXONOMY for system in systems)
