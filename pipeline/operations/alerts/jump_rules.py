"""Rules about numbers of a night that are far above those of the site's own last nights, and about checks that fail.

A night is a day in the site's zone on which exports were asked for. Nights are compared with nights that asked for the
same: what `_since` asks for is less than everything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date

import psycopg

from omop_schema.exports import ExportState, sql_values
from pipeline.operations.alerts.circumstances import Circumstances
from pipeline.operations.alerts.kinds import AlertKind, Condition
from pipeline.operations.alerts.nights import NIGHTLY_KINDS
from pipeline.quality.bounds import usual
from pipeline.quality.checks.model import Severity

__all__ = ["dead_letter_jumps", "failed_checks", "unmapped_jumps"]

_NIGHTS = f"""
WITH recent AS (
    SELECT export_id, (requested_at AT TIME ZONE %(zone)s)::date AS night, since IS NULL AS is_full FROM export_job
    WHERE site = %(site)s AND state = '{ExportState.PUBLISHED}' AND kind IN {sql_values(NIGHTLY_KINDS)}
    ORDER BY requested_at DESC LIMIT %(exports)s
)
"""
_DEAD_LETTERS = f"""{_NIGHTS}
SELECT night, is_full, coalesce(sum(rejected), 0)::bigint, coalesce(sum(lines), 0)::bigint
FROM recent LEFT JOIN export_file USING (export_id) GROUP BY 1, 2 ORDER BY 1 DESC
"""
_UNMAPPED = f"""{_NIGHTS}
SELECT night, is_full, coalesce(sum(rows - mapped), 0)::bigint, coalesce(sum(rows), 0)::bigint
FROM recent LEFT JOIN coverage USING (export_id) GROUP BY 1, 2 ORDER BY 1 DESC
"""
# The newest answer of each check, for each table and site.
_CHECKS = """
SELECT * FROM (
    SELECT DISTINCT ON (check_name, cdm_table, site) check_name, cdm_table, site, checked_at, severity, problems, detail
    FROM check_result ORDER BY check_name, cdm_table, site, checked_at DESC
) AS last WHERE problems > 0 ORDER BY check_name, cdm_table, site
"""


@dataclass(frozen=True)
class _Night:
    day: date
    is_full: bool
    count: int
    of: int

    @property
    def share(self) -> float:
        return self.count / self.of if self.of else 0.0


def dead_letter_jumps(connection: psycopg.Connection, at: Circumstances) -> Iterator[Condition]:
    """Lines that could not be loaded, in the last night of each site."""
    least = at.alerts.jump_least_dead_letters
    for site, nights in _nights_of_sites(connection, at, _DEAD_LETTERS):
        last, before = nights[0], usual([night.count for night in nights[1:]])
        if last.count > before.highest(at.alerts.jump_deviations, least):
            what = (
                f"{last.count:,} of {last.of:,} lines of the night of {last.day} became dead letters; the"
                f" {len(nights) - 1} nights before had {before.median:,.0f} (median)."
            )
            yield Condition(AlertKind.DEAD_LETTERS_JUMP, site, what)


def unmapped_jumps(connection: psycopg.Connection, at: Circumstances) -> Iterator[Condition]:
    """Codes without a concept, in the last night of each site; more of them because there is more of everything is no
    jump, so their share must be above the usual as well."""
    least = at.alerts.jump_least_unmapped_codes
    for site, nights in _nights_of_sites(connection, at, _UNMAPPED):
        last, before = nights[0], usual([night.count for night in nights[1:]])
        shares = usual([night.share for night in nights[1:]])
        has_jumped = last.count > before.highest(at.alerts.jump_deviations, least)
        if has_jumped and last.share > shares.highest(at.alerts.jump_deviations, 0.01):
            what = (
                f"{last.count:,} of {last.of:,} codes of the night of {last.day} ({100 * last.share:.1f} %) have no"
                f" concept; the {len(nights) - 1} nights before had {before.median:,.0f} ({100 * shares.median:.1f} %)"
                " (median)."
            )
            yield Condition(AlertKind.UNMAPPED_CODES_JUMP, site, what)


def _nights_of_sites(
    connection: psycopg.Connection, at: Circumstances, query: str
) -> Iterator[tuple[str, Sequence[_Night]]]:
    """Of each site with enough nights: the last one, and those before it that asked for the same."""
    for name, site in at.settings.sites.items():
        # A group may be asked for twice in a day, and every night asks for each of the groups.
        most = (at.alerts.history_nights + 1) * max(len(site.groups), 1) * 2
        values = {"site": name, "zone": site.time_zone, "exports": most}
        nights = [_Night(*row) for row in connection.execute(query, values).fetchall()]
        alike = [night for night in nights if night.is_full == nights[0].is_full][: at.alerts.history_nights + 1]
        if len(alike) > at.alerts.history_least_nights:
            yield name, alike


def failed_checks(connection: psycopg.Connection, _: Circumstances) -> Iterator[Condition]:
    """Checks whose last answer names problems; a check of one site is the site's."""
    for check, table, site, checked_at, severity, problems, detail in connection.execute(_CHECKS).fetchall():
        kind = AlertKind.CHECK_FAILED if severity == Severity.ERROR else AlertKind.CHECK_WARNS
        about = f" of {table}" if table else ""
        said = f" {detail}" if detail else ""
        what = f"Check {check}{about}: {problems:,} problems at {checked_at:%Y-%m-%d %H:%M} UTC.{said}"
        yield Condition(kind, site, what, f"{check}:{table or ''}")
