"""What spellings of a code system's URI have in common. Which names stand for one system is in the mappings."""

from __future__ import annotations

__all__ = ["plain_name"]


def plain_name(system: str) -> str:
    """What spellings of one name have in common."""
    name = system.strip().partition("|")[0].casefold().rstrip("/#")
    for kind in ("urn:oid:", "oid:"):
        if name.startswith(kind):
            return name.removeprefix(kind)
    for scheme in ("http://", "https://"):
        if name.startswith(scheme):
            name = name.removeprefix(scheme).removeprefix("www.")
    return name
