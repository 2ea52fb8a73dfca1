"""The accounting rule: every line of a landed file has exactly one outcome. Its text is `sql/accounting_rule.sql`.

Publication asks it before the commit, `epic-omop verify` and the asset check at any time; README.md quotes it.
"""

from __future__ import annotations

from dataclasses import dataclass

import psycopg

from pipeline.publication.sql import fragment
from pipeline.staging.outcomes import LineOutcome

__all__ = ["ACCOUNTING_RULE", "WrongAccount", "count_accounts", "wrong_accounts"]

#: A condition on `etl.file_account`.
ACCOUNTING_RULE = fragment("accounting_rule")
_OUTCOMES = " + ".join(LineOutcome)


@dataclass(frozen=True)
class WrongAccount:
    """A file whose lines and outcomes do not add up."""

    export_id: int
    file: str
    lines: int
    outcomes: int


def wrong_accounts(
    connection: psycopg.Connection, *, site: str | None = None, export_id: int | None = None
) -> list[WrongAccount]:
    """The files that break the rule, of a site or an export or all, newest first. `connection` has the etl schema on its
    search_path."""
    query = fragment("wrong_accounts", outcomes=_OUTCOMES)
    found = connection.execute(query, {"site": site, "export_id": export_id}).fetchall()
    return [WrongAccount(*row) for row in found]


def count_accounts(connection: psycopg.Connection, site: str) -> tuple[int, int, int]:
    """Files, lines and outcomes of a site. `connection` is as above."""
    row = connection.execute(fragment("count_accounts", outcomes=_OUTCOMES), {"site": site}).fetchone()
    assert row is not None
    return row[0], row[1], row[2]
