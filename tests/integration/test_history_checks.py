"""A site's last night against its own nights before, from rows of `etl`: what is odd, for which site, by whose bounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from omop_schema.exports import ExportKind, ExportState
from pipeline.core.history_bounds import HistoryBounds
from pipeline.core.settings import Settings, SiteSettings
from pipeline.quality.checks.history import history_findings, history_rules, read_bounds
from pipeline.warehouse.runtime import Runtime

LAST = datetime(2026, 3, 31, 6, tzinfo=UTC)
#: Of a night like all others; `codes` have a concept in the share `mapping_rate`.
USUAL: Mapping[str, float] = {"mapping_rate": 0.9, "lines": 10_000, "rows_removed": 200, "dead_letters": 4}


@pytest.fixture
def connection(installed_url: str) -> Iterator[psycopg.Connection]:
    """What a test writes is there for it alone."""
    with Runtime(Settings(home=Path("none"), database_url=installed_url)).connect() as connection:
        yield connection
        connection.rollback()


def site(name: str, **changes: Any) -> SiteSettings:
    return SiteSettings(name=name, time_zone="America/Chicago", **changes)


def export(connection: psycopg.Connection, name: str, at: datetime, night: Mapping[str, float], **columns: Any) -> None:
    values = {
        "site": name, "kind": ExportKind.FOLDER, "state": ExportState.PUBLISHED, "requested_at": at, "landed_at": at,
        "published_at": at, **columns,
    }  # fmt: skip
    names, holders = ", ".join(values), ", ".join(["%s"] * len(values))
    row = connection.execute(
        f"INSERT INTO export_job ({names}) VALUES ({holders}) RETURNING export_id".encode(), list(values.values())
    ).fetchone()
    assert row
    connection.execute(
        "INSERT INTO export_file (export_id, file_number, resource_type, file, lines, rejected)"
        " VALUES (%s, 1, 'Patient', 'f', %s, %s)",
        (row[0], int(night["lines"]), int(night["dead_letters"])),
    )
    connection.execute(
        "INSERT INTO publication (export_id, published_at, vocabulary_release, fingerprint, cdm_version, ig_version,"
        " software_version, rows_inserted, rows_deleted) VALUES (%s, %s, '', '', '5.4', '', '', %s, %s)",
        (row[0], at, Jsonb({"person": 100}), Jsonb({"person": 100 + int(night["rows_removed"])})),
    )
    connection.execute(
        "INSERT INTO coverage (export_id, site, cdm_table, resource_type, element, system, rows, mapped, published_at)"
        " VALUES (%s, %s, 'condition_occurrence', 'Condition', 'code', '', 1000, %s, %s)",
        (row[0], name, round(1000 * night["mapping_rate"]), at),
    )


def nights(connection: psycopg.Connection, name: str, count: int, last: Mapping[str, float]) -> None:
    """So many nights before the last one, each a little different, and one of them a failure that no median minds."""
    for ago in range(count, 0, -1):
        sway = {key: number * (1 + (ago % 3 - 1) / 100) for key, number in USUAL.items()}
        night = {key: round(number, 3 if key == "mapping_rate" else 0) for key, number in sway.items()}
        export(connection, name, LAST - timedelta(days=ago), night if ago != 3 else {**night, "lines": 1})
    export(connection, name, LAST, {**USUAL, **last})


def odd(connection: psycopg.Connection, *sites: SiteSettings) -> dict[str, set[str | None]]:
    settings = Settings(home=Path("none"), sites={site.name: site for site in sites})
    found = history_findings(connection, settings, history_rules())
    assert [finding.rule for finding in found] == list(history_rules())
    return {finding.rule.name: set(finding.by_site) for finding in found if finding.problems}


CASES: Mapping[str, tuple[int, Mapping[str, float], set[str]]] = {
    "usual": (14, {}, set()),
    "fewer_codes": (14, {"mapping_rate": 0.8}, {"mapping_rate_as_before"}),
    "more_codes": (14, {"mapping_rate": 0.99}, set()),
    "few_lines": (14, {"lines": 5_000}, {"lines_as_before"}),
    "many_lines": (14, {"lines": 50_000}, set()),
    "rows_gone": (14, {"rows_removed": 5_000}, {"rows_removed_as_before"}),
    "letters": (14, {"dead_letters": 40}, {"dead_letters_as_before"}),
    "some_letters": (14, {"dead_letters": 9}, set()),
    "all_of_it": (
        14,
        {"mapping_rate": 0.1, "lines": 10, "rows_removed": 1e6, "dead_letters": 1e5},
        {f"{name}_as_before" for name in USUAL},
    ),
    "too_young": (4, {"mapping_rate": 0.1, "lines": 10}, set()),
    "just_old_enough": (5, {"lines": 10}, {"lines_as_before"}),
}


def test_a_night_is_odd_by_the_sites_own_past_and_one_query_asks_for_all_sites(connection: psycopg.Connection) -> None:
    for name, (count, last, _) in CASES.items():
        nights(connection, name, count, last)
    # of `usual`: neither what has no codes at all, nor an export since a time, is a night to compare
    export(connection, "usual", LAST + timedelta(hours=1), {**USUAL, "lines": 3}, since=LAST)
    asked: list[str] = []
    execute = psycopg.Cursor.execute

    def counting(self: psycopg.Cursor[Any], query: Any, *values: Any, **more: Any) -> Any:
        asked.append(str(query))
        return execute(self, query, *values, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(psycopg.Cursor, "execute", counting)
        found = odd(connection, *(site(name) for name in CASES))
    expected: dict[str, set[str | None]] = {}
    for name, (_, _, checks) in CASES.items():
        for check in checks:
            expected.setdefault(check, set()).add(name)
    assert found == expected
    assert len(asked) == 1


def test_a_site_has_bounds_of_its_own(connection: psycopg.Connection) -> None:
    nights(connection, "north", 14, {"lines": 5_000, "dead_letters": 40, "mapping_rate": 0.88})
    assert odd(connection, site("north")) == {"lines_as_before": {"north"}, "dead_letters_as_before": {"north"}}
    calm = HistoryBounds.model_validate({"lines": {"least_share": 0.6}, "dead_letters": {"least": 100}})
    assert odd(connection, site("north", history_bounds=calm)) == {}
    strict = HistoryBounds.model_validate({"mapping_rate": {"least": 0.001, "deviations": 1}, "least_nights": 14})
    assert odd(connection, site("north", history_bounds=strict)).keys() == {
        "lines_as_before",
        "dead_letters_as_before",
        "mapping_rate_as_before",
    }
    patient = HistoryBounds(least_nights=15, nights=20)
    assert odd(connection, site("north", history_bounds=patient)) == {}, "there are 14"


def test_a_last_night_without_a_number_says_nothing_about_it(connection: psycopg.Connection) -> None:
    """An older night's number must not pass for the last one's."""
    nights(connection, "north", 14, {"mapping_rate": 0.1})
    export(connection, "north", LAST + timedelta(days=1), USUAL)
    connection.execute(
        "DELETE FROM coverage WHERE export_id = (SELECT max(export_id) FROM export_job WHERE site = 'north')"
    )
    assert odd(connection, site("north")) == {}


def test_the_bounds_are_of_measures_that_the_query_gives_and_a_site_can_set() -> None:
    assert set(read_bounds().measures) == set(USUAL) == set(HistoryBounds.model_fields) - {"nights", "least_nights"}
