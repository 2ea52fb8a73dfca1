"""Identity: FHIR ids and references → surrogate ids, and stable 64-bit keys of content.

Nothing here looks anything up: a reference becomes the surrogate id of its target by hashing, so resources are
joined as integers without a map in memory. Full keys are kept in `etl.resource_state`, where collisions are checked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import polars as pl
import xxhash

__all__ = ["SurrogateKeys", "content_key", "signed"]

_VERSION = re.compile(r"\|[^/|]*\Z")
_RELATIVE = re.compile(r"([A-Z][A-Za-z]{1,63})/([^/#?\s]+)")


def signed(value: int) -> int:
    """An unsigned 64-bit hash as PostgreSQL's BIGINT."""
    return value - (1 << 64) if value >= 1 << 63 else value


def content_key(*parts: str | None) -> int:
    """Signed 64-bit key of content such as an address: the same parts give the same key in every run."""
    return signed(xxhash.xxh3_64_intdigest("\x1f".join(part or "" for part in parts).encode()))


class SurrogateKeys:
    """Surrogate ids of one site: xxh3-64 of salt, site, resource type and id.

    Ids may be longer than FHIR's 64 characters and may hold dots and dashes (Epic's rule 12).
    """

    def __init__(self, site: str, salt: str = "") -> None:
        self._prefix = f"{salt}\x1f{site}\x1f"

    def of(self, resource_type: str, resource_id: str) -> int:
        return signed(xxhash.xxh3_64_intdigest(f"{self._prefix}{resource_type}/{resource_id}".encode()))

    def of_all(self, resource_type: str, resource_ids: Iterable[str]) -> pl.Series:
        """`of` for many resources of one type, Int64."""
        named = map(f"{self._prefix}{resource_type}/".__add__, resource_ids)
        keys = list(map(xxhash.xxh3_64_intdigest, map(str.encode, named)))
        return pl.Series("surrogate_id", keys, dtype=pl.UInt64).reinterpret(signed=True)


def parse_reference(reference: str, default_type: str | None = None) -> tuple[str, str] | None:
    """(resource type, id) of a literal reference: relative, absolute, versioned or `urn:uuid:`; else None.

    A version may stand behind `/_history/`, or behind `|` as in a canonical URL: FHIR's ids have no such character.
    """
    if not isinstance(reference, str):
        raise ValueError("expected a string")  # noqa: TRY004 - a wrong shape of data, reported like the view's
    if reference.startswith("urn:uuid:"):
        return (default_type, _VERSION.sub("", reference[9:])) if default_type else None
    if reference.startswith("#") or "?" in reference:  # the query of a conditional one may look like a path
        return None
    path = _VERSION.sub("", reference.split("/_history/", 1)[0])
    if "/" not in path:
        return None
    match = _RELATIVE.fullmatch("/".join(path.rsplit("/", 2)[-2:]))
    return (match[1], match[2]) if match else None
