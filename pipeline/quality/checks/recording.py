"""Answers of checks are kept in `etl.check_result`; alerts, `status` and metrics read the newest ones."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

import psycopg

from pipeline.quality.checks.model import Finding

__all__ = ["record"]

_INSERT = (
    "INSERT INTO check_result (check_name, cdm_table, site, checked_at, severity, problems, detail)"
    " VALUES (%s, %s, %s, %s, %s, %s, %s)"
)
#: Sites of which the newest answer names problems.
_WITH_PROBLEMS = """
SELECT site FROM (
    SELECT DISTINCT ON (site) site, problems FROM check_result
    WHERE check_name = %s AND cdm_table IS NOT DISTINCT FROM %s AND site IS NOT NULL ORDER BY site, checked_at DESC
) AS newest WHERE problems > 0
"""


def record(connection: psycopg.Connection, findings: Iterable[Finding], now: datetime) -> None:
    """A row of each finding for problems without a site, 0 too; one of each site with problems, and of each that had some
    the last time. `connection` has the etl schema on its search_path."""
    rows = []
    for finding in findings:
        rule = finding.rule
        before = [site for (site,) in connection.execute(_WITH_PROBLEMS, [rule.name, rule.cdm_table]).fetchall()]
        for site in (None, *sorted({*before, *filter(None, finding.by_site)})):
            problems = finding.by_site.get(site, 0)
            rows.append(
                (
                    rule.name,
                    rule.cdm_table,
                    site,
                    now,
                    rule.severity,
                    problems,
                    finding.details.get(site, finding.detail) if problems else "",
                )
            )
    with connection.cursor() as cursor:
        cursor.executemany(_INSERT, rows)
