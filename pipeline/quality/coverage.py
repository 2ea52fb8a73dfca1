"""How much of what was loaded has a concept: by table, element and code system, by night and vocabulary release.

Read from `etl.coverage`, which each publication adds to: the rows that its export made. What has no concept at present is
`pipeline.quality.unmapped`; what the tables hold is `pipeline.quality.mapping_report`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

import psycopg

__all__ = [
    "CoverageFall",
    "CoverageNight",
    "CoverageShare",
    "coverage_falls",
    "coverage_nights",
    "coverage_shares",
    "last_night",
]

#: A night with fewer codes of a kind says nothing about it.
LEAST_ROWS = 50
#: In the share of codes with a concept, as a part of one: what the site sends differs from night to night.
_FALL = 0.05
#: Nights before the last one that it is compared with.
_BEFORE = 14


@dataclass(frozen=True)
class CoverageShare:
    """Codes of a system in an element that fills a table, and those of them with a concept."""

    cdm_table: str
    resource_type: str
    element: str
    system: str
    rows: int
    mapped: int

    @property
    def share(self) -> float:
        return self.mapped / self.rows if self.rows else 0.0

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"share": round(self.share, 4)}


@dataclass(frozen=True)
class CoverageNight:
    """All codes that a site's exports of a day loaded under one release."""

    site: str
    day: date
    #: label of the release
    release: str
    vocabulary_hash: str | None
    rows: int
    mapped: int

    @property
    def share(self) -> float:
        return self.mapped / self.rows if self.rows else 0.0

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"day": self.day.isoformat(), "share": round(self.share, 4)}


@dataclass(frozen=True)
class CoverageFall:
    """Where the last night has a lower share than the nights before it."""

    last: CoverageShare
    before: float

    @property
    def sentence(self) -> str:
        named = f"{self.last.resource_type}.{self.last.element} → {self.last.cdm_table}"
        return (
            f"{named}, {self.last.system or 'no system'}: {100 * self.last.share:.1f} % of {self.last.rows:,} codes have a"
            f" concept, after {100 * self.before:.1f} %."
        )


_DAY = "(coalesce(job.transaction_time, coverage.published_at) AT TIME ZONE 'UTC')::date"
_SHARES = """
SELECT cdm_table, resource_type, element, system, sum(rows)::bigint, sum(mapped)::bigint FROM coverage
WHERE export_id = ANY(%s) GROUP BY 1, 2, 3, 4 ORDER BY 5 DESC, 1, 2, 3, 4
"""
_NIGHTS = f"""
SELECT site, day, coalesce(release, 'unknown'), vocabulary_hash, rows, mapped FROM (
    SELECT coverage.site, {_DAY} AS day, coverage.vocabulary_hash, sum(rows)::bigint AS rows, sum(mapped)::bigint AS mapped,
           dense_rank() OVER (PARTITION BY coverage.site ORDER BY {_DAY} DESC) AS place
    FROM coverage LEFT JOIN export_job AS job USING (export_id)
    WHERE %(site)s::text IS NULL OR coverage.site = %(site)s
    GROUP BY coverage.site, {_DAY}, coverage.vocabulary_hash
) AS night LEFT JOIN vocabulary_release AS item ON item.content_hash = night.vocabulary_hash
WHERE place <= %(nights)s ORDER BY site, day DESC, 3
"""
_FALLS = f"""
WITH night AS (
    SELECT {_DAY} AS day, cdm_table, resource_type, element, system, sum(rows)::bigint AS rows, sum(mapped)::bigint AS mapped
    FROM coverage LEFT JOIN export_job AS job USING (export_id) WHERE coverage.site = %(site)s GROUP BY 1, 2, 3, 4, 5
), placed AS (SELECT *, dense_rank() OVER (ORDER BY day DESC) AS place FROM night)
SELECT last.cdm_table, last.resource_type, last.element, last.system, last.rows, last.mapped,
       (sum(former.mapped) / sum(former.rows))::float
FROM placed AS last JOIN placed AS former USING (cdm_table, resource_type, element, system)
WHERE last.place = 1 AND former.place BETWEEN 2 AND %(before)s AND last.rows >= %(least)s
GROUP BY 1, 2, 3, 4, 5, 6
HAVING sum(former.rows) >= %(least)s AND last.mapped::float / last.rows < sum(former.mapped) / sum(former.rows) - %(fall)s
ORDER BY last.rows DESC, 1, 2, 3, 4
"""


def coverage_shares(connection: psycopg.Connection, export_ids: Sequence[int]) -> tuple[CoverageShare, ...]:
    """Of these exports, the most frequent first. `connection` has the etl schema on its search_path."""
    rows = connection.execute(_SHARES, (list(export_ids),)).fetchall()
    return tuple(CoverageShare(*row) for row in rows)


def coverage_nights(connection: psycopg.Connection, site: str | None, nights: int) -> list[CoverageNight]:
    """Of a site, or of each: its last so many days with an export, the newest first. `connection` is as above."""
    rows = connection.execute(_NIGHTS, {"site": site, "nights": nights}).fetchall()
    return [CoverageNight(*row) for row in rows]


def last_night(connection: psycopg.Connection, site: str | None) -> tuple[CoverageShare, ...]:
    """Shares of the last day with codes, of a site or of each site."""
    rows = connection.execute(
        f"SELECT export_id FROM (SELECT export_id, rank() OVER (PARTITION BY coverage.site ORDER BY {_DAY} DESC) AS place"
        " FROM coverage LEFT JOIN export_job AS job USING (export_id)"
        " WHERE %(site)s::text IS NULL OR coverage.site = %(site)s) AS placed WHERE place = 1 GROUP BY 1",
        {"site": site},
    ).fetchall()
    return coverage_shares(connection, [export_id for (export_id,) in rows])


def coverage_falls(connection: psycopg.Connection, site: str) -> list[CoverageFall]:
    """Codes of which the last night has noticeably fewer with a concept than the nights before it, as a share."""
    values = {"site": site, "before": _BEFORE + 1, "least": LEAST_ROWS, "fall": _FALL}
    rows = connection.execute(_FALLS, values).fetchall()
    return [CoverageFall(CoverageShare(*row[:6]), row[6]) for row in rows]
