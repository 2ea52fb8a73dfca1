"""The zone of every `*_datetime` column where EPIC_OMOP_TIME_ZONE does not name one: that of the first site.

With dates in the site's zone and times in UTC one row would have 2024-01-01 beside 2024-01-02 03:00. The zone is kept in
`<home>/time_zone` from the first load on, so that no other site, or other order of sites, changes it; a warehouse that
was loaded before zones were kept stays in UTC.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pipeline.core.files import make_folder, write_whole

__all__ = ["default_zone", "keep_zone"]

_UTC = "UTC"
#: What the first load of a home leaves: see `pipeline.publication.known_cache.known_folder`.
_LOADED = "known"


def _file(home: Path) -> Path:
    return home / "time_zone"


def default_zone(home: Path, site_zones: Iterable[str]) -> str:
    """The zone that is kept, else UTC for a home that was loaded without one, else that of the first site, else UTC."""
    try:
        kept = _file(home).read_text(encoding="utf-8").strip()
    except OSError:
        kept = ""
    if kept:
        return kept
    return _UTC if (home / _LOADED).exists() else next(iter(site_zones), _UTC)


def keep_zone(home: Path, zone: str) -> None:
    """Keep the zone under which a home is loaded for the first time; one that is kept already stays. Raises LandingError."""
    if not _file(home).exists():
        make_folder(home)
        write_whole(_file(home), f"{zone}\n".encode())
