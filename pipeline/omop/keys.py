"""Identity: FHIR ids and references → surrogate ids, and stable 64-bit keys of content.

Nothing here looks anything up: a reference becomes the surrogate id of its target by hashing, so resources are
joined as integers without a map in memory. Full keys are kept in `etl.resource_state`, where collisions are checked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import polars as pl
import xxhash

__all__ = ["SurrogateKeys", "content_key", "signed"]

_RELATIVE = re.compile(r"([A-Z][A-Za-z]{1,63})/([^/#?\s]+)")
#: References of one kind of element that are remembered: those that follow each other are often the same.
_MEMO_LIMIT = 100_000
#: Stands for what is not remembered; None is remembered, too.
_UNKNOWN = -(1 << 64)


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
        self._converters: dict[str | None, Callable[[dict[str, Any]], int | None]] = {}

    def of(self, resource_type: str, resource_id: str) -> int:
        return signed(xxhash.xxh3_64_intdigest(f"{self._prefix}{resource_type}/{resource_id}".encode()))

    def of_all(self, resource_type: str, resource_ids: Iterable[str]) -> pl.Series:
        """`of` for many resources of one type, Int64."""
        named = map(f"{self._prefix}{resource_type}/".__add__, resource_ids)
        keys = list(map(xxhash.xxh3_64_intdigest, map(str.encode, named)))
        return pl.Series("surrogate_id", keys, dtype=pl.UInt64).reinterpret(signed=True)

    def converter(self, default_type: str | None = None) -> Callable[[dict[str, Any]], int | None]:
        """A function FHIR Reference → surrogate id of the target, None where there is none to follow.

        `default_type` is the target's type for `urn:uuid:` references, which do not name it. Contained (`#x`) and
        identifier-only references have no surrogate id. Raises ValueError for a `reference` that is no string.
        """
        if default_type not in self._converters:
            self._converters[default_type] = self._new_converter(default_type)
        return self._converters[default_type]

    def _new_converter(self, default_type: str | None) -> Callable[[dict[str, Any]], int | None]:
        resolve = self._resolve
        memo: dict[str | None, int | None] = {None: None}

        def convert(value: dict[str, Any]) -> int | None:
            reference = value.get("reference")
            target = memo.get(reference, _UNKNOWN)
            if target is not _UNKNOWN:
                return target
            if len(memo) >= _MEMO_LIMIT:
                memo.clear()
                memo[None] = None
            memo[reference] = target = resolve(reference, default_type)
            return target

        return convert

    def _resolve(self, reference: Any, default_type: str | None) -> int | None:
        if reference.__class__ is str and _RELATIVE.fullmatch(reference):  # nearly all are `Patient/id`
            return signed(xxhash.xxh3_64_intdigest((self._prefix + reference).encode()))
        parsed = parse_reference(reference, default_type)
        return self.of(*parsed) if parsed else None


def parse_reference(reference: str, default_type: str | None = None) -> tuple[str, str] | None:
    """(resource type, id) of a literal reference: relative, absolute, versioned or `urn:uuid:`; else None."""
    if not isinstance(reference, str):
        raise ValueError("expected a string")  # noqa: TRY004 - a wrong shape of data, told like the view's
    if reference.startswith("urn:uuid:"):
        return (default_type, reference[9:]) if default_type else None
    if reference.startswith("#"):
        return None
    path = reference.split("/_history/", 1)[0]
    if "/" not in path:
        return None
    match = _RELATIVE.fullmatch("/".join(path.rsplit("/", 2)[-2:]))
    return (match[1], match[2]) if match else None
