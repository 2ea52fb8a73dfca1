"""A site's last night against its own nights before: mapping rates, lines, rows that went, dead letters.

Bounds are data (`history_bounds.yaml`); what is usual is a median, which one odd night does not move.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import psycopg
import yaml

from omop_schema.exports import ExportKind, ExportState, sql_values
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
#: Of the last nights of each site, newest first: the measures. A night is a day of kick-offs in the site's zone; exports
#: `since` a time are no nights.
_NIGHTS = f"""
SELECT night, sum(mapped) / nullif(sum(codes), 0), sum(lines), sum(removed), sum(rejected) FROM (
    SELECT (job.requested_at AT TIME ZONE %(zone)s)::date AS night,
        (SELECT sum(rows) FROM coverage WHERE coverage.export_id = job.export_id) AS codes,
        (SELECT sum(mapped) FROM coverage WHERE coverage.export_id = job.export_id) AS mapped,
        (SELECT sum(lines) FROM export_file AS file WHERE file.export_id = job.export_id) AS lines,
        (SELECT sum(rejected) FROM export_file AS file WHERE file.export_id = job.export_id) AS rejected,
        (SELECT greatest(0, coalesce((SELECT sum(value::bigint) FROM jsonb_each_text(rows_deleted)), 0)
            - coalesce((SELECT sum(value::bigint) FROM jsonb_each_text(rows_inserted)), 0))
            FROM publication WHERE publication.export_id = job.export_id) AS removed
    FROM export_job AS job WHERE job.site = %(site)s AND job.state = '{ExportState.PUBLISHED}' AND job.since IS NULL
        AND job.kind IN {sql_values(_KINDS)} ORDER BY job.requested_at DESC LIMIT %(exports)s
) AS exports GROUP BY night ORDER BY night DESC LIMIT %(nights)s
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
    nights: int
    least_nights: int
    measures: dict[str, Measure] = field(default_factory=dict)


@cache
def read_bounds() -> Bounds:
    given = yaml.safe_load(Path(__file__).with_name("history_bounds.yaml").read_text(encoding="utf-8"))
    measures = {name: Measure(**values) for name, values in given.pop("measures").items()}
    return Bounds(**given, measures=measures)


@cache
def history_rules() -> tuple[Rule, ...]:
    return tuple(
        Rule(f"{name}_as_before", _SENTENCES[name], "", severity=Severity.WARN, advice="`epic-omop report` says more.")
        for name in read_bounds().measures
    )


def history_findings(connection: psycopg.Connection, settings: Settings, rules: Sequence[Rule]) -> list[Finding]:
    """One of each rule of `history_rules` among `rules`. `connection` has the etl schema on its search_path."""
    bounds = read_bounds()
    odd: dict[str, dict[str | None, int]] = {name: {} for name in bounds.measures}
    words: dict[str, dict[str | None, str]] = {name: {} for name in bounds.measures}
    for name, site in settings.sites.items():
        values = {"site": name, "zone": site.time_zone, "nights": bounds.nights + 1}
        values["exports"] = values["nights"] * 2 * max(1, len(site.groups))  # type: ignore[operator]
        nights = connection.execute(_NIGHTS.encode(), values).fetchall()
        for position, (measure, bound) in enumerate(bounds.measures.items(), start=1):
            numbers = [float(night[position]) for night in nights if night[position] is not None]
            if len(numbers) > bounds.least_nights and bound.is_odd(numbers[0], numbers[1:]):
                odd[measure][name] = 1
                words[measure][name] = (
                    f"{numbers[0]:,.4g}; the median of {len(numbers) - 1} nights is {usual(numbers[1:]).median:,.4g}."
                )
    wanted = {rule.name for rule in rules}
    return [
        Finding(rule, odd[measure], details=words[measure])
        for rule, measure in zip(history_rules(), bounds.measures, strict=True)
        if rule.name in wanted
    ]
