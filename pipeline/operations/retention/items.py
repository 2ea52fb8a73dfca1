"""What an item of retention is, and what it says of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from pipeline.core.retention_settings import RetentionSettings
from pipeline.warehouse.runtime import Runtime

__all__ = ["ItemReport", "ItemWork", "Kept", "RetentionItem"]


@dataclass(frozen=True)
class Kept:
    """Things that are older than the setting and stay, or that have none, and why."""

    count: int
    why: str


@dataclass
class ItemReport:
    """What went, or would go. `what` is its plural; `bytes`: on disk, None where that cannot be said. `problem`: why nothing, or
    not all, was done."""

    name: str
    setting: str
    what: str
    removed: int = 0
    bytes: int | None = None
    kept: list[Kept] = field(default_factory=list)
    problem: str = ""

    def remove(self, count: int, size: int | None = None) -> None:
        self.removed += count
        if size is not None:
            self.bytes = (self.bytes or 0) + size

    def keep(self, count: int, why: str) -> None:
        """Adds to what is kept for the same reason; nothing for none."""
        if count:
            before = sum(one.count for one in self.kept if one.why == why)
            self.kept = [*(one for one in self.kept if one.why != why), Kept(before + count, why)]


@dataclass(frozen=True)
class ItemWork:
    """What an item works with. `now` is one for all items. Not `is_dry`: it removes.

    `pruned`: site → exports that a dry run of landing would prune; the items after it reckon with that.
    """

    runtime: Runtime
    settings: RetentionSettings
    now: datetime
    is_dry: bool
    pruned: dict[str, frozenset[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class RetentionItem:
    """`name` is that of its setting. `apply` fills the report, so that what was done before an error is in it; it may be
    stopped at any moment and is safe to repeat. Raises what its stage raises."""

    name: str
    what: str
    apply: Callable[[ItemWork, ItemReport], None]
    #: what `setting` shows where the item has none of its own name
    setting: str = ""

    def report(self, settings: RetentionSettings) -> ItemReport:
        return ItemReport(self.name, self.setting or str(getattr(settings, self.name)), self.what)
