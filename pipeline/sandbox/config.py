"""How a simulated Epic is set up: its groups, its registered clients, its clock and its habits. No behaviour."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Protocol

from pipeline.core.clock import Clock, SystemClock
from pipeline.sandbox.faults import Fault

__all__ = ["RegisteredClient", "ResourceSource", "SandboxConfig"]


class ResourceSource(Protocol):
    """Where the resources of one group come from."""

    def resource_types(self) -> Collection[str]:
        """The types that the group has at all."""
        ...

    def lines(self, types: Collection[str], first_day: date, day: int) -> Iterator[tuple[str, bytes]]:
        """(type of the file, NDJSON line without its line feed), `day` days after the sandbox's `first_day`."""
        ...


@dataclass(frozen=True)
class RegisteredClient:
    """A client as it was registered: `public_keys` are PEM texts or JWKs (a dict, with its `kid` where it has one)."""

    client_id: str
    public_keys: tuple[str | Mapping[str, Any], ...]
    scopes: tuple[str, ...] = ("system/*.read",)


@dataclass(frozen=True)
class SandboxConfig:
    """`clock` is the real time, by which assertions and tokens are judged; windows, jobs and days follow the
    sandbox's own clock, which begins with it and can be moved on by `POST /sandbox/clock`.
    """

    groups: Mapping[str, ResourceSource]
    clients: tuple[RegisteredClient, ...]
    clock: Clock = field(default_factory=SystemClock)
    #: Epic allows one kick-off for a client and group in this many seconds; 0 switches the rule off.
    kickoff_window_seconds: float = 24 * 3600
    #: HTTP status of the "too recently" refusal; sites differ.
    too_recently_status: int = 400
    #: The export is complete when both are reached: answers "still running", and seconds of the sandbox's clock.
    polls_until_complete: int = 1
    seconds_until_complete: float = 0
    retry_after_seconds: int = 2
    resources_per_file: int = 3000
    #: Types, and ids of single resources, that reads and searches give and the bulk export leaves out (rule 11).
    left_out_types: frozenset[str] = frozenset()
    left_out_ids: frozenset[str] = frozenset()
    #: Entries on a page of search results, whatever `_count` asks for above it.
    entries_per_page: int = 50
    #: Categories of Observation that the search API has (rule 6).
    observation_categories: frozenset[str] = frozenset(
        {"laboratory", "vital-signs", "social-history", "survey", "exam", "imaging"}
    )
    #: Whether searches know `_lastUpdated`; where they do not, it is ignored with a warning.
    knows_last_updated: bool = False
    #: Whether exports know `_since`: False: it is ignored, as many sites do; None: it is refused.
    knows_since: bool | None = False
    token_seconds: int = 3600
    #: Jobs, files, kick-offs and the clock outlive a restart when this folder is given.
    state_dir: Path | None = None
    #: What goes wrong; see `faults.py`.
    faults: tuple[Fault, ...] = ()
