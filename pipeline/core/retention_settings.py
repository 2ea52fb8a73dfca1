"""Settings of retention: the section `retention:` of operations.yaml (docs/retention.md), one key for each thing that grows.

What landing keeps is a setting of each site (`landing_keep` in sites.yaml); the access log has none: it is never shortened.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

__all__ = ["RetentionSettings", "age_of", "number_of"]

_AGE = re.compile(r"(?P<number>[1-9]\d{0,4}) days?")
_NUMBER = re.compile(r"(?P<number>[1-9]\d{0,4}) (snapshots?|releases?)")
_FOREVER = "forever"


def age_of(value: str) -> timedelta | None:
    """`90 days`; None for `forever`. Raises ValueError for another text."""
    if value == _FOREVER:
        return None
    match = _AGE.fullmatch(value)
    if match is None:
        raise ValueError(f"{value!r} is neither a number of days, such as '90 days', nor 'forever'")
    return timedelta(days=int(match["number"]))


def number_of(value: str) -> int | None:
    """`2 snapshots`; None for `forever`. Raises ValueError for another text."""
    if value == _FOREVER:
        return None
    match = _NUMBER.fullmatch(value)
    if match is None:
        raise ValueError(f"{value!r} is neither a number, such as '2 snapshots' or '2 releases', nor 'forever'")
    return int(match["number"])


def _is_age(value: str) -> str:
    age_of(value)
    return value


def _is_number(value: str) -> str:
    number_of(value)
    return value


Age = Annotated[str, AfterValidator(_is_age)]
Number = Annotated[str, AfterValidator(_is_number)]


class RetentionSettings(BaseModel):
    """How long what grows with time is kept: `N days`, `N snapshots`, `N releases`, or `forever`. The descriptions are the table
    in docs/retention.md."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    staging: Age = Field(
        "2 days",
        description="Parts and plans that loads left when they were killed: `staging/` and `transforming/` in the home.",
    )
    defects: Age = Field(
        "90 days", description="Files about unexpected errors, `defects/` in the home: they may quote patient data."
    )
    members: Age = Field(
        "400 days",
        description="Which resources each export had (`seen/` in the home), once neither a group's next export nor a late"
        " one needs it.",
    )
    dead_letters: Age = Field(
        "400 days",
        description="Closed dead letters with their lines. What they were is counted in `etl.dead_letter_history`.",
    )
    history: Age = Field(
        "800 days",
        description="What `etl` notes of nights and nothing is decided by: coverage, results of checks, alerts and their"
        " deliveries, failed runs, free disk space, requests by hour.",
    )
    resolver_answers: Age = Field(
        "400 days",
        description="Answers of resolvers that ended, and those of former vocabulary releases to codes that were answered"
        " again.",
    )
    dagster_runs: Age = Field(
        "180 days", description="Finished runs of Dagster with their events, but for the last of each asset and day."
    )
    dagster_logs: Age = Field("30 days", description="What steps of finished runs wrote (compute logs).")
    dagster_ticks: Age = Field("14 days", description="Ticks of schedules and sensors.")
    lakehouse_snapshots: Number = Field("2 snapshots", description="Snapshots of the lakehouse, the latest among them.")
    vocabulary_releases: Number = Field(
        "2 releases", description="Vocabulary releases with their tables, the active one among them."
    )
    schedule: str = Field(
        "45 12 * * *",
        description="When Dagster's schedule `retention__daily` does it: cron, in the instance's zone.",
    )
