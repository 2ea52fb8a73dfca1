"""What is usual, when a night was due, how long a disk lasts; and that every kind of alert can be read and followed."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
import typer

from pipeline.commands.cli import app
from pipeline.core.settings import SiteSettings
from pipeline.operations.alerts.disk_rules import _days_left
from pipeline.operations.alerts.kinds import KINDS, AlertKind, Condition
from pipeline.operations.alerts.nights import last_tick
from pipeline.quality.bounds import slope, usual

PAGE = (Path(__file__).parents[2] / "docs" / "alerts.md").read_text()


@pytest.mark.parametrize(
    ("zone", "schedule", "now", "expected"),
    [
        ("UTC", "0 1 * * *", "2026-03-05T01:00", "2026-03-05T01:00"),  # at the very minute
        ("UTC", "0 1 * * *", "2026-03-05T00:59", "2026-03-04T01:00"),
        ("Asia/Kolkata", "0 1 * * *", "2026-03-05T00:00", "2026-03-04T19:30"),
        ("America/Chicago", "30 2 * * *", "2026-03-07T12:00", "2026-03-07T08:30"),  # winter time
        ("America/Chicago", "30 3 * * *", "2026-03-09T12:00", "2026-03-09T08:30"),  # summer time since the 8th
        ("Europe/Berlin", "0 1 * * 1", "2026-03-08T12:00", "2026-03-02T00:00"),  # once a week
    ],
)
def test_a_night_is_due_by_the_sites_own_schedule_and_zone(zone: str, schedule: str, now: str, expected: str) -> None:
    site = SiteSettings(name="one", time_zone=zone, schedule=schedule)
    found = last_tick(site, datetime.fromisoformat(now).replace(tzinfo=UTC))
    assert found == datetime.fromisoformat(expected).replace(tzinfo=UTC)


def test_one_odd_night_moves_no_bound() -> None:
    even, odd = usual([10, 12, 11, 9, 10, 11, 10]), usual([10, 12, 11, 9, 10, 11, 5_000])
    assert even.highest(5, 20) == 30
    assert odd.highest(5, 20) == 31
    assert usual([0, 0, 0]).highest(5, 20) == 20


def test_a_trend_is_that_of_most_days() -> None:
    days = [(float(day), 1000.0 - 100 * day) for day in range(7)]
    assert slope(days) == -100
    assert slope([*days[:3], (3.0, 9_999.0), *days[4:]]) == -100  # a day on which somebody moved things away
    assert _days_left(days, 400) == 4
    assert _days_left([(day, -free) for day, free in days], 400) is None  # it grows
    assert _days_left(days[:2], 400) is None  # too short


@pytest.mark.parametrize("kind", AlertKind)
def test_each_kind_says_what_to_do_by_a_command_that_exists_and_has_a_section(kind: AlertKind) -> None:
    command = Condition(kind, "north", "something").command
    words = command.split()
    assert words[0] == "epic-omop"
    found = typer.main.get_command(app)
    for word in words[1:]:
        if word.startswith("-") or not isinstance(found, typer.core.TyperGroup):
            break
        found = found.commands[word]
    options = {name for parameter in found.params for name in parameter.opts}
    assert [word for word in words if word.startswith("--") and word not in options] == []
    section = re.search(rf"^### {KINDS[kind].title} \(`{kind}`\)\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert section, f"docs/alerts.md has no section of {kind}"
    for text in (KINDS[kind].meaning, KINDS[kind].command.format(site="NAME")):
        assert " ".join(text.split()) in " ".join(section[1].split())
