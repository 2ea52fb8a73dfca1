"""Hash of what a resource says, however its line is written: servers reorder keys, stamp and sign anew every time.

Lines of one hash give the views the same input: the parsed resource, without what is named here. What the parser reads
as one is one (blanks, escapes, `1.0` and `1.00`, the last of repeated keys); a number whose digits the pipeline keeps
(`exact_numbers`) counts by its digits. All else makes another hash, and where there is no canonical form there is none:
the resource counts as changed.
"""

from __future__ import annotations

import json
from typing import Any

import orjson
import polars as pl
import xxhash

__all__ = ["EXCLUDED_META", "content_digest", "digests_as_integers"]

#: Members of `meta` that do not count. Mappings that read them are refused (`pipeline.transform.mapping_check`).
EXCLUDED_META = frozenset({"lastUpdated", "versionId"})

#: Names of FHIR R4's elements that are Attachments; those of a choice end with `Attachment` (`valueAttachment`).
#: Where the same name stands for another type, that type has no `url`.
_ATTACHMENTS = frozenset({"attachment", "content", "document", "form", "image", "photo", "presentedForm"})
_CHOICE = "Attachment"

#: No FHIR element has this name, and lines with NUL are rejected.
_NUMBER = "\x00number"

_dumps, _digest, _SORTED = orjson.dumps, xxhash.xxh3_64_digest, orjson.OPT_SORT_KEYS


def content_digest(resource: dict[str, Any], raw: bytes, *, has_long_numbers: bool = False) -> bytes | None:
    """8 bytes, xxh3-64 of the canonical content; None: there is none (nested too deeply, `meta` is not an object).

    `resource` is what orjson reads from `raw`; it is the same after the call. `has_long_numbers`: the line is one of
    `exact_numbers.lines_with_long_numbers`, and the digits of all its numbers count.
    """
    try:
        if has_long_numbers:
            resource = json.loads(raw, parse_float=_by_digits, parse_int=_by_digits)
        if b"?" in raw:  # in few lines; without it no URL is signed
            resource = _unsigned(resource)
        meta = resource.get("meta")
        if meta is None:
            return _digest(_dumps(resource, None, _SORTED))
        counted = {name: value for name, value in meta.items() if name not in EXCLUDED_META}
        if not counted:
            return _digest(_dumps({name: value for name, value in resource.items() if name != "meta"}, None, _SORTED))
        resource["meta"] = counted
        try:
            return _digest(_dumps(resource, None, _SORTED))
        finally:
            resource["meta"] = meta
    except (RecursionError, AttributeError, orjson.JSONEncodeError):
        return None


def digests_as_integers(digests: list[bytes | None]) -> pl.Series:
    """Column content_hash: signed 64-bit integers, NULL where there is no digest."""
    return pl.Series("content_hash", digests, dtype=pl.Binary).bin.reinterpret(dtype=pl.Int64)


def _by_digits(text: str) -> dict[str, str]:
    return {_NUMBER: text}


def _unsigned(value: Any) -> Any:
    """A copy in which the URLs of Attachments have no query."""
    if isinstance(value, dict):
        return {name: _unsigned_element(name, item) for name, item in value.items()}
    return [_unsigned(item) for item in value] if isinstance(value, list) else value


def _unsigned_element(name: str, value: Any) -> Any:
    found = _unsigned(value)
    if name in _ATTACHMENTS or name.endswith(_CHOICE):
        for attachment in found if isinstance(found, list) else (found,):
            if isinstance(attachment, dict) and isinstance(attachment.get("url"), str):
                attachment["url"] = attachment["url"].partition("?")[0]
    return found
