"""What the transform stage asks of its surroundings: Protocols, and the value that holds one of each.

The stage opens no file. Known lines, facts and Binaries are read, and parts are written, by whoever runs it: a worker
process (`pipeline.load.worker`), another executor, or a test. `NO_PORTS` knows nothing and keeps nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import polars as pl

__all__ = ["NO_PORTS", "Binaries", "Facts", "KnownContents", "Parts", "Ports"]


class KnownContents(Protocol):
    """Which content of which resource is loaded (`pipeline.staging.known_lines.KnownLines`)."""

    @property
    def has_contents(self) -> bool:
        """False: no content is known, and nothing need be asked."""

    def are_known(self, surrogate_ids: pl.Series, contents: pl.Series) -> pl.Series:
        """Boolean, in the order of both series: whether the content (a content hash, or NULL) is that of the resource."""


class Facts(Protocol):
    """What other resources left (`pipeline.staging.facts.Facts`)."""

    def of(self, name: str, resources: pl.Series) -> pl.DataFrame:
        """Facts of one name about resources (surrogate ids): columns surrogate_id, value, at most one row each."""


class Binaries(Protocol):
    """Landed lines of Binary resources."""

    def read(self, places: Iterable[str]) -> Iterable[tuple[str, bytes]]:
        """Lines by their places (values of the fact `binary`); a place at which there is none is left out."""


class Parts(Protocol):
    """Where the rows go (`pipeline.staging.parts.StagedExport`)."""

    def write(self, kind: str, part: str, frame: pl.DataFrame) -> None:
        """Keep one part of a kind (`pipeline.staging.schemas`); an empty frame is nothing. Raises LandingError."""


@dataclass(frozen=True)
class Ports:
    """All that the transform stage reads apart from its lines, and where it writes."""

    known: KnownContents
    facts: Facts
    binaries: Binaries
    parts: Parts


class _Nothing:
    """Every port of a worker that only tries its mappings."""

    has_contents = False

    def are_known(self, surrogate_ids: pl.Series, contents: pl.Series) -> pl.Series:  # noqa: ARG002
        return pl.repeat(False, len(surrogate_ids), dtype=pl.Boolean, eager=True)

    def of(self, name: str, resources: pl.Series) -> pl.DataFrame:  # noqa: ARG002
        return pl.DataFrame(schema={"surrogate_id": pl.Int64, "value": pl.String})

    def read(self, places: Iterable[str]) -> Iterable[tuple[str, bytes]]:  # noqa: ARG002
        return ()

    def write(self, kind: str, part: str, frame: pl.DataFrame) -> None:
        pass


NO_PORTS = Ports(_Nothing(), _Nothing(), _Nothing(), _Nothing())
