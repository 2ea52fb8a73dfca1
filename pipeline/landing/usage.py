"""What landing takes on the disk, what it gained lately, and for how long the disk lasts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from pipeline.core.files import landing_errors
from pipeline.landing.store import LandingStore

__all__ = ["LandingUsage", "export_bytes", "landing_usage"]

#: Growth is that of so many days.
_DAYS = 14


@dataclass(frozen=True)
class LandingUsage:
    """Bytes. `exported` is what the files of finished exports contained before they were stored."""

    exports: int
    stored: int
    exported: int
    #: What the exports of the last 14 days added, and the nights (days with an export) among these.
    added: int
    nights: int
    free: int

    @property
    def days_left(self) -> int | None:
        """Nights like these until the disk is full; None: nothing was added."""
        return int(self.free / (self.added / self.nights)) if self.added and self.nights else None

    def sentence(self) -> str:
        """For people: what it holds, how fast it grows, and how long that can continue."""
        share = (
            f" ({100 * self.stored / self.exported:.1f} % of the {_size(self.exported)} that came)"
            if self.exported
            else ""
        )
        summary = f"Landing holds {_size(self.stored)} for {self.exports:,} exports{share}"
        if not self.nights:
            return f"{summary}; nothing landed in the last {_DAYS} days; {_size(self.free)} of the disk are free."
        grown = f"it grew by {_size(self.added // self.nights)} a night in the last {_DAYS} days"
        left = f"enough for {self.days_left:,} days" if self.days_left is not None else "nothing is used up"
        return f"{summary}; {grown}; {_size(self.free)} of the disk are free: {left}."


def landing_usage(landing: LandingStore, landed_at: Mapping[tuple[str, int], datetime], now: datetime) -> LandingUsage:
    """Look at all sites' files; each file on disk counts once. `landed_at`: (site, export id) → when it landed."""
    seen: set[tuple[int, int]] = set()
    stored = exported = added = exports = 0
    nights = set()
    for site in landing.sites():
        finished = {export.export_id: export for export in landing.finished(site)}
        for number in landing.numbers(site):
            size = _new_bytes(landing.folder(site, number), seen)
            stored += size
            if export := finished.get(number):
                exports += 1
                exported += sum(file.bytes for file in (*export.files, *export.outcomes, *export.deleted))
            time = landed_at.get((site, number))
            if time is not None and time >= now - timedelta(days=_DAYS):
                added += size
                nights.add(time.date())
    existing = next(path for path in (landing.root, *landing.root.parents) if path.exists())
    return LandingUsage(exports, stored, exported, added, len(nights), shutil.disk_usage(existing).free)


def export_bytes(folder: Path) -> int:
    """Bytes on disk that would be free without this folder: files of which another export is a user do not count."""
    with landing_errors(folder):
        return sum(stat.st_size for stat in _stats(folder) if stat.st_nlink == 1)


def _new_bytes(folder: Path, seen: set[tuple[int, int]]) -> int:
    size = 0
    with landing_errors(folder):
        for stat in _stats(folder):
            if (stat.st_dev, stat.st_ino) not in seen:
                seen.add((stat.st_dev, stat.st_ino))
                size += stat.st_size
    return size


def _stats(folder: Path) -> list[os.stat_result]:
    return [path.lstat() for path in folder.rglob("*") if path.is_file()] if folder.exists() else []


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
