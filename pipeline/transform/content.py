"""The second comparison: lines whose bytes are new, and whose content is what is known of their resource.

Lines are parsed for it one at a time and forgotten; what did change is parsed again for the views. That is little in the
usual night, while keeping all resources of a chunk until the answer is there would cost more than parsing.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import orjson
import polars as pl

from pipeline.fhir.content_hash import content_digest, digests_as_integers
from pipeline.sql_on_fhir import exact_numbers
from pipeline.transform.plan import Worker

__all__ = ["Contents"]


class Contents:
    """Digests of the content of a chunk's lines, by index; each is made once. Lines that cannot be parsed have none."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._digests: dict[int, bytes | None] = {}

    def note(self, index: int, resource: dict[str, Any], raw: bytes, *, has_long_numbers: bool) -> None:
        """Of a line that is read for the views. `resource` is what orjson reads from `raw`."""
        if index not in self._digests:
            self._digests[index] = content_digest(resource, raw, has_long_numbers=has_long_numbers)

    def unchanged(self, indexes: Sequence[int], raws: Sequence[bytes]) -> pl.DataFrame:
        """Those of the lines whose content is known of their resource. Columns index, surrogate_id."""
        schema = {"index": pl.Int32, "surrogate_id": pl.Int64}
        if not indexes or not self._worker.ports.known.has_contents:
            return pl.DataFrame(schema=schema)
        long_numbers = exact_numbers.lines_with_long_numbers(
            pl.Series(raws, dtype=pl.Binary).cast(pl.String, strict=False)  # what is not UTF-8 is not valid JSON either
        )
        limit, key_of = self._worker.plan.site.max_line_bytes, self._worker.keys.of
        surrogate_ids: list[int | None] = []
        digests: list[bytes | None] = []
        for place, (index, raw) in enumerate(zip(indexes, raws, strict=True)):
            named, digest = None, None
            if len(raw) <= limit:
                with suppress(orjson.JSONDecodeError):
                    resource = orjson.loads(raw)
                    if named := _named(resource):
                        digest = content_digest(resource, raw, has_long_numbers=place in long_numbers)
                        self._digests[index] = digest
            surrogate_ids.append(key_of(*named) if named else None)
            digests.append(digest)
        lines = pl.DataFrame({"index": indexes, "surrogate_id": surrogate_ids}, schema=schema)
        return lines.filter(self._worker.ports.known.are_known(lines["surrogate_id"], digests_as_integers(digests)))

    def frame(self) -> pl.DataFrame:
        """Columns index, content_hash."""
        return pl.DataFrame(
            [
                pl.Series("index", list(self._digests), dtype=pl.Int32),
                digests_as_integers(list(self._digests.values())),
            ]
        )


def _named(resource: Any) -> tuple[str, str] | None:
    """Type and id of a resource that has both."""
    if not isinstance(resource, dict):
        return None
    resource_type, resource_id = resource.get("resourceType"), resource.get("id")
    if isinstance(resource_type, str) and isinstance(resource_id, str):
        return resource_type, resource_id
    return None
