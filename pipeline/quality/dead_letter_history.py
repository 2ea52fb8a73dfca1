"""How many dead letters are open, by code, and how long letters stay open. No value of a line is here.

A letter is open since a line of its resource was first rejected, also where the line has changed since (`open_since`).
Closed letters that retention removed are counted in `etl.dead_letter_history`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import psycopg

from pipeline.core.line_codes import RejectionCode

__all__ = ["CodeHistory", "OpenCode", "closed_letters", "code_histories", "open_by_code"]


@dataclass(frozen=True)
class OpenCode:
    """Open letters of one code. `days_open`: whole days, the letter in the middle; `causes`: resources that others wait for."""

    code: str
    stages: tuple[str, ...]
    letters: int
    by_site: Mapping[str, int]
    by_type: Mapping[str, int]
    oldest: datetime
    days_open: int
    causes: int


@dataclass
class CodeHistory:
    """Letters of one code that were closed in a time, and those that are open now. Days are whole days that a letter was open."""

    code: str
    open_now: int = 0
    open_days: int | None = None
    longest_open: int | None = None
    #: ending (resolved, repaired, superseded) → days open → letters
    closed: dict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))

    def count(self, ending: str) -> int:
        return self.closed[ending].total() if ending in self.closed else 0

    @property
    def days_to_resolve(self) -> int | None:
        """Of the letters that were resolved or repaired, the one in the middle; None where there is none."""
        ended: Counter[int] = Counter()
        for ending in ("resolved", "repaired"):
            ended.update(self.closed.get(ending, Counter()))
        return _middle(ended)

    @property
    def longest(self) -> int | None:
        days = [number for ending in ("resolved", "repaired") for number in self.closed.get(ending, ())]
        return max(days, default=None)


def open_by_code(connection: psycopg.Connection, now: datetime, *, site: str | None = None) -> list[OpenCode]:
    """Open letters by code, the most frequent first."""
    rows = connection.execute(
        "SELECT code, site, resource_type, stage, count(*), min(open_since), count(DISTINCT caused_by),"
        " array_agg(extract(epoch FROM %(now)s - open_since)::bigint / 86400) FROM dead_letter"
        " WHERE state = 'open' AND (%(site)s::text IS NULL OR site = %(site)s) GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4",
        {"now": now, "site": site},
    ).fetchall()
    groups: dict[str, list[tuple[str, str, str, int, datetime, int, list[int]]]] = defaultdict(list)
    for code, *rest in rows:
        groups[code].append(tuple(rest))
    found = []
    for code, group in groups.items():
        sites, types, days = Counter[str](), Counter[str](), Counter[int]()
        for of_site, kind, _, count, _, _, ages in group:
            sites[of_site] += count
            types[kind] += count
            days.update(max(0, age) for age in ages)
        found.append(
            OpenCode(
                code,
                tuple(dict.fromkeys(stage for _, _, stage, *_ in group)),
                sites.total(),
                dict(sites.most_common()),
                dict(types.most_common()),
                min(oldest for *_, oldest, _, _ in group),
                _middle(days) or 0,
                sum(causes for *_, causes, _ in group),
            )
        )
    return sorted(found, key=lambda one: (-one.letters, one.code))


#: SQL: closed letters as rows of `etl.dead_letter_history`, with a condition to be added.
_CLOSED = (
    "SELECT site, resource_type, code, (closed_at AT TIME ZONE 'UTC')::date AS closed_on,"
    " CASE WHEN is_repaired THEN 'repaired' ELSE state END AS ending,"
    " greatest(0, extract(epoch FROM closed_at - open_since)::bigint / 86400)::integer AS days_open, count(*) AS letters"
    f" FROM dead_letter WHERE state <> 'open' AND code <> '{RejectionCode.PERSON_ERASED}' {{}} GROUP BY 1, 2, 3, 4, 5, 6"
)


def closed_letters(condition: str = "") -> str:
    """SQL: closed letters by the columns of `etl.dead_letter_history`. `condition`: begins with AND."""
    return _CLOSED.format(condition)


def code_histories(
    connection: psycopg.Connection, now: datetime, *, days: int, site: str | None = None
) -> list[CodeHistory]:
    """By code: letters that were closed in the last `days` days, and those that are open now; the most frequent first."""
    histories: dict[str, CodeHistory] = {}
    rows = connection.execute(
        "SELECT code, ending, days_open, sum(letters)::bigint FROM"
        f" ({closed_letters()} UNION ALL SELECT site, resource_type, code, closed_on, ending, days_open, letters"
        "   FROM dead_letter_history) AS closed"
        " WHERE closed_on >= %(first)s AND (%(site)s::text IS NULL OR site = %(site)s) GROUP BY 1, 2, 3 ORDER BY 1, 2, 3",
        {"first": (now - timedelta(days=days)).date(), "site": site},
    )
    for code, ending, open_days, letters in rows:
        histories.setdefault(code, CodeHistory(code)).closed[ending][open_days] += letters
    for code, letters, middle, longest in _open_ages(connection, now, site):
        history = histories.setdefault(code, CodeHistory(code))
        history.open_now, history.open_days, history.longest_open = letters, middle, longest
    return sorted(histories.values(), key=lambda one: (-one.open_now, -sum(map(one.count, one.closed)), one.code))


def _open_ages(connection: psycopg.Connection, now: datetime, site: str | None) -> Iterable[tuple[str, int, int, int]]:
    return [
        (code, letters, max(0, middle), max(0, longest))
        for code, letters, middle, longest in connection.execute(
            "SELECT code, count(*), percentile_disc(0.5) WITHIN GROUP (ORDER BY age), max(age) FROM"
            " (SELECT code, extract(epoch FROM %(now)s - open_since)::bigint / 86400 AS age FROM dead_letter"
            "  WHERE state = 'open' AND (%(site)s::text IS NULL OR site = %(site)s)) AS letter GROUP BY 1 ORDER BY 1",
            {"now": now, "site": site},
        )
    ]


def _middle(days: Counter[int]) -> int | None:
    """The lower median of days, each counted."""
    seen, half = 0, (days.total() + 1) // 2
    for number in sorted(days):
        seen += days[number]
        if seen >= half:
            return number
    return None
