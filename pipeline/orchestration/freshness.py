"""How old a site's last load may be, by its own schedule: what Dagster shows as fresh, late or stale."""

# No `from __future__ import annotations`: Dagster compares the annotation of `context` as an object.

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise

import dagster as dg
from cronsim import CronSim

from pipeline.core.settings import SiteSettings

__all__ = ["freshness_policy", "longest_gap"]

#: An export may take hours at Epic; a load that comes later than these after its time is late, and then stale.
_LATE, _STALE = timedelta(hours=6), timedelta(hours=18)
#: Ticks of the schedule that are looked at: two months of nights, so that weekends and month ends are among them.
_TICKS = 62
#: Any day will do: what counts is the distance between ticks.
_FROM = datetime(2026, 1, 1, tzinfo=UTC)


def freshness_policy(site: SiteSettings) -> dg.FreshnessPolicy | None:
    """None of a site that has no schedule: its folders come when somebody brings them."""
    if site.fhir_url is None or not (site.groups or site.patients_file):
        return None
    gap = longest_gap(site)
    return dg.FreshnessPolicy.time_window(fail_window=gap + _STALE, warn_window=gap + _LATE)


def longest_gap(site: SiteSettings) -> timedelta:
    """The longest time between two runs of the site's schedule, in its own zone."""
    ticks = islice(CronSim(site.schedule, _FROM.astimezone(site.zone)), _TICKS)
    return max((later - earlier for earlier, later in pairwise(ticks)), default=timedelta(days=1))
