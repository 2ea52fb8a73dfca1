"""Business identifiers of practitioners, organizations and locations → keyed 64-bit keys. Never those of a person.

The identifier itself is kept nowhere: a reference by identifier and the resource that has it meet in the same HMAC
(docs/decisions/0015-references-by-identifier.md).
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

from pipeline.fhir.identity import signed

__all__ = ["IDENTIFIED_TYPES", "IdentifierKeys", "identifier_keys", "queried_identifier"]

#: Types whose identifiers are compared. Whose identifiers are patient data (Patient, RelatedPerson, Encounter, Coverage
#: and all others) is never asked.
IDENTIFIED_TYPES = ("Practitioner", "PractitionerRole", "Organization", "Location")

#: In place of a system: any. No system has this name, because white space is trimmed.
_ANY_SYSTEM = " "
#: References that follow each other are often by the same identifier.
_REMEMBERED = 100_000


class IdentifierKeys:
    """Keys of one site's identifiers: the first 64 bits of HMAC-SHA256 under the instance's secret key."""

    def __init__(self, site: str, secret: bytes) -> None:
        self._site = site
        self._secret = secret
        #: the key of an identifier by type, system ("": it has none; None: any) and value; ValueError for other types
        self.of = lru_cache(_REMEMBERED)(self._key)

    def _key(self, resource_type: str, system: str | None, value: str) -> int:
        if resource_type not in IDENTIFIED_TYPES:
            raise ValueError(f"identifiers of {resource_type} are not compared")
        named = _ANY_SYSTEM if system is None else system
        text = "\x1f".join((self._site, resource_type, named, value))
        return signed(int.from_bytes(hmac.digest(self._secret, text.encode(), "sha256")[:8], "big"))


def parts_of(identifier: Any) -> tuple[str, str] | None:
    """(system or "", value) of an Identifier without the white space around them; None where it has no value.

    Raises ValueError for a shape that FHIR does not allow.
    """
    if identifier.__class__ is not dict:
        raise ValueError("expected an Identifier")
    system, value = identifier.get("system") or "", identifier.get("value") or ""
    if system.__class__ is not str or value.__class__ is not str:
        raise ValueError("expected the system and the value of an Identifier to be strings")
    return (system.strip(), value.strip()) if value.strip() else None


def identifier_keys(keys: IdentifierKeys, resource_type: str, *, any_system: bool) -> Callable[[Any], int | None]:
    """Converter Identifier of such a resource → its key; with `any_system` the one that names no system."""

    def convert(identifier: Any) -> int | None:
        parts = parts_of(identifier)
        if parts is None:
            return None
        system, value = parts
        return keys.of(resource_type, None if any_system else system, value)

    return convert


def queried_identifier(query: str) -> tuple[str | None, str] | None:
    """(system, value) that the query of a conditional reference asks for, such as `identifier=system|value`.

    system: None for `identifier=value` (any), "" for `identifier=|value` (none). None where the query asks for anything
    else: it might find what it does not mean. Source: FHIR R4, "Search", token parameters and escapes.
    """
    name, separator, token = query.partition("=")
    if name != "identifier" or not separator or "&" in token:
        return None
    parts = list(_split(unquote(token)))
    if len(parts) > 2 or not parts[-1].strip():
        return None
    return (None if len(parts) == 1 else parts[0].strip()), parts[-1].strip()


def _split(token: str) -> Iterator[str]:
    r"""The parts of a token between unescaped `|`; a list (`,`) is made three parts, so that it is refused."""
    part, escaped = "", False
    for character in token:
        if escaped:
            part, escaped = part + character, False
        elif character == "\\":
            escaped = True
        elif character == "|":
            yield part
            part = ""
        elif character == ",":
            yield from ("", "", "")
        else:
            part += character
    yield part
