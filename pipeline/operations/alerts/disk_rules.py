"""Free space of the file systems that are ours to fill: samples of it, and when it ends by its trend.

Each run of the alerts takes a sample an hour. Space comes and goes with each night (landed exports, pruning), so a day
counts with its least free space. The disk of a database elsewhere is not seen.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path

import psycopg

from pipeline.core.settings import Settings
from pipeline.operations.alerts.circumstances import Circumstances
from pipeline.operations.alerts.kinds import AlertKind, Condition
from pipeline.quality.bounds import slope

__all__ = ["disks_full_soon", "sample_disks"]

_INTERVAL = timedelta(minutes=55)
_KEPT = timedelta(days=30)
#: A trend of less than this is noise.
_SHORTEST_TREND_DAYS = 2
#: Whatever the trend: the next export may not fit.
_LEAST_FREE_SHARE = 0.03

# The least free space of each day, and the newest sample.
_DAYS = """
SELECT volume, extract(epoch FROM date_trunc('day', sampled_at)) / 86400.0, min(free_bytes)::float
FROM disk_sample WHERE sampled_at > %(since)s AND volume = ANY(%(volumes)s) GROUP BY 1, 2 ORDER BY 1, 2
"""


def sample_disks(connection: psycopg.Connection, settings: Settings, now: datetime) -> None:
    """A sample of each file system, where the last one is an hour old; samples older than a month are removed.

    Does not commit."""
    row = connection.execute("SELECT max(sampled_at) FROM disk_sample").fetchone()
    if row and row[0] and now - row[0] < _INTERVAL:
        return
    for volume, folder in _volumes(settings).items():
        usage = shutil.disk_usage(folder)
        connection.execute(
            "INSERT INTO disk_sample (volume, sampled_at, total_bytes, free_bytes) VALUES (%s, %s, %s, %s)"
            " ON CONFLICT DO NOTHING",
            (volume, now, usage.total, usage.free),
        )
    connection.execute("DELETE FROM disk_sample WHERE sampled_at < %s", (now - _KEPT,))


def disks_full_soon(connection: psycopg.Connection, at: Circumstances) -> Iterator[Condition]:
    """File systems that are nearly full, or will be within `disk_within_days` as it went on the last days."""
    volumes = _volumes(at.settings)
    since = at.now - timedelta(days=at.alerts.history_nights)
    rows = connection.execute(_DAYS, {"since": since, "volumes": list(volumes)}).fetchall()
    for volume, folder in volumes.items():
        usage = shutil.disk_usage(folder)
        days = [(float(day), float(free)) for name, day, free in rows if name == volume]
        left = _days_left(days, usage.free)
        if usage.free < _LEAST_FREE_SHARE * usage.total:
            what = f"The disk of {volume} ({folder}) has {_size(usage.free)} left of {_size(usage.total)}."
        elif left is not None and left <= at.alerts.disk_within_days:
            what = (
                f"The disk of {volume} ({folder}) has {_size(usage.free)} left and is full in about"
                f" {max(left, 0.0):.0f} days, by the trend of the last {len(days)} days."
            )
        else:
            continue
        yield Condition(AlertKind.DISK_FULL_SOON, None, what, volume)


def _days_left(days: list[tuple[float, float]], free: int) -> float | None:
    """None: it does not shrink, or too little is known."""
    if len(days) < 2 or days[-1][0] - days[0][0] < _SHORTEST_TREND_DAYS:
        return None
    a_day = slope(days)
    return free / -a_day if a_day < 0 else None


def _volumes(settings: Settings) -> Mapping[str, Path]:
    """Each file system once, under the first name of ours that is on it."""
    folders = {"home": settings.home, "landing": settings.landing, "staging": settings.staging}
    if settings.lakehouse:
        folders["lakehouse"] = Path(settings.lakehouse)
    found: dict[int, tuple[str, Path]] = {}
    for name, folder in folders.items():
        try:
            found.setdefault(folder.stat().st_dev, (name, folder))
        except OSError:  # not there yet, or not to be reached: whoever writes there says so
            continue
    return dict(found.values())


def _size(count: float) -> str:
    return f"{count / 1e9:,.1f} GB"
