"""A site's last night against its own nights before: mapping rates, lines, rows that went, dead letters.

Bounds are data (`history_bounds.yaml`, and `history_bounds` of a site); what is usual is a median, which one odd night
does not move.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
import yaml
from psycopg.rows import dict_row

from omop_schema.exports import ExportKind, ExportState, sql_values
from pipeline.core.history_bounds import HistoryBounds
from pipeline.core.settings import Settings
from pipeline.quality.bounds import usual
from pipeline.quality.checks.model import Finding, Rule, Severity

__all__ = ["Bounds", "Measure", "history_findings", "history_rules", "read_bounds"]

_KINDS = (ExportKind.BULK, ExportKind.FOLDER, ExportKind.CRAWL)
_SENTENCES = {
    "mapping_rate": "the last night's codes have a concept as often as on the nights before",
    "lines": "the last night's exports have as many lines as those of the nights before",
    "rows_removed": "the last night removed no more rows than the nights before",
    "dead_letters": "the last night rejected no more lines than the nights before",
}
#: Of each site, newest first: its last nights, and a column for each measure. A night is a day of kick-offs in the site's
#: zone; exports `since` a time are no nights.
_NIGHTS = f"""
SELECT asked.site, night, sum(mapped) / nullif(sum(codes), 0) AS mapping_rate, sum(lines) AS lines,
    sum(removed) AS rows_removed, sum(rejected) AS dead_letters
FROM unnest(%(sites)s::text[], %(zones)s::text[], %(exports)s::int[]) AS asked (site, zone, most) CROSS JOIN LATERAL (
    SELECT (job.requested_at AT TIME ZONE asked.zone)::date AS night,
        (SELECT sum(rows) FROM coverage WHERE coverage.export_id = job.export_id) AS codes,
        (SELECT sum(mapped) FROM coverage WHERE coverage.export_id = job.export_id) AS mapped,
        (SELECT sum(lines) FROM export_file AS file WHERE file.export_id = job.export_id) AS lines,
        (SELECT sum(rejected) FROM export_file AS file WHERE file.export_id = job.export_id) AS rejected,
        (SELECT greatest(0, coalesce((SELECT sum(value::bigint) FROM jsonb_each_text(rows_deleted)), 0)
            - coalesce((SELECT sum(value::bigint) FROM jsonb_each_text(rows_inserted)), 0))
            FROM publication WHERE publication.export_id = job.export_id) AS removed
    FROM export_job AS job WHERE job.site = asked.site AND job.state = '{ExportState.PUBLISHED}' AND job.since IS NULL
        AND job.kind IN {sql_values(_KINDS)} ORDER BY job.requested_at DESC LIMIT asked.most
) AS exports GROUP BY asked.site, night ORDER BY asked.site, night DESC
"""


@dataclass(frozen=True)
class Measure:
    """How far a number may be from its median. `least_share`: a share of the median."""

    deviations: float
    side: str
    least: float = 0.0
    least_share: float = 0.0

    def is_odd(self, value: float, before: Sequence[float]) -> bool:
        past = usual(before)
        room = max(self.deviations * past.deviation, self.least, self.least_share * past.median)
        return value > past.median + room if self.side == "above" else value < past.median - room


@dataclass(frozen=True)
class Bounds:
    #: before the last one
    nights: int
    least_nights: int
    measures: Mapping[str, Measure] = field(default_factory=dict)

    def of_site(self, own: HistoryBounds) -> Bounds:
        """What the site gives, and these for the rest."""
        given = own.model_dump(exclude_none=True)
        measures = {name: replace(measure, **given.get(name, {})) for name, measure in self.measures.items()}
        numbers = {name: given[name] for name in ("nights", "least_nights") if name in given}
        return replace(self, measures=measures, **numbers)


@cache
def read_bounds() -> Bounds:
    """Of all sites."""
    given = yaml.safe_load(Path(__file__).with_name("history_bounds.yaml").read_text(encoding="utf-8"))
    measures = {name: Measure(**values) for name, values in given.pop("measures").items()}
    return Bounds(**given, measures=measures)


@cache
def history_rules() -> tuple[Rule, ...]:
    return tuple(
        Rule(_check_name(name), _SENTENCES[name], "", severity=Severity.WARN, advice="`epic-omop report` says more.")
        for name in read_bounds().measures
    )


def history_findings(connection: psycopg.Connection, settings: Settings, rules: Sequence[Rule]) -> list[Finding]:
    """One of each rule of `history_rules` among `rules`, by one query for all sites. `connection` has the etl schema on its
    search_path."""
    bounds = {name: read_bounds().of_site(site.history_bounds) for name, site in settings.sites.items()}
    odd: dict[str, dict[str | None, str]] = {rule.name: {} for rule in history_rules()}
    for site, nights in _nights(connection, settings, bounds).items():
        for name, measure in bounds[site].measures.items():
            if words := _oddness(name, measure, nights, bounds[site].least_nights):
                odd[_check_name(name)][site] = words
    wanted = {rule.name for rule in rules}
    return [
        Finding(rule, dict.fromkeys(odd[rule.name], 1), details=odd[rule.name])
        for rule in history_rules()
        if rule.name in wanted
    ]


def _check_name(measure: str) -> str:
    return f"{measure}_as_before"


def _nights(
    connection: psycopg.Connection, settings: Settings, bounds: Mapping[str, Bounds]
) -> dict[str, list[Mapping[str, Any]]]:
    """Site → its nights, newest first, each with its measures by name."""
    sites = settings.sites
    # A group may be asked for twice in a day, and every night asks for each of the groups.
    most = [(bounds[name].nights + 1) * 2 * max(1, len(site.groups)) for name, site in sites.items()]
    values = {"sites": list(sites), "zones": [site.time_zone for site in sites.values()], "exports": most}
    nights: dict[str, list[Mapping[str, Any]]] = {}
    with connection.cursor(row_factory=dict_row) as cursor:
        for row in cursor.execute(_NIGHTS.encode(), values):
            nights.setdefault(row["site"], []).append(row)
    return {site: rows[: bounds[site].nights + 1] for site, rows in nights.items()}


def _oddness(name: str, measure: Measure, nights: Sequence[Mapping[str, Any]], least_nights: int) -> str:
    """What is odd about the last night; nothing where it has no such number, or where there are too few before it."""
    last = nights[0][name]
    before = [float(night[name]) for night in nights[1:] if night[name] is not None]
    if last is None or len(before) < least_nights or not measure.is_odd(float(last), before):
        return ""
    night, median = nights[0]["night"], usual(before).median
    if name == "mapping_rate":
        return (
            f"{100 * last:.1f} % in the night of {night}; the median of {len(before)} nights is {100 * median:.1f} %."
        )
    return f"{last:,.0f} in the night of {night}; the median of {len(before)} nights is {median:,.0f}."
