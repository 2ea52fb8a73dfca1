"""What a kick-off that failed means: for its job, and for when the group is asked again. `REFUSALS` is the whole rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NoReturn

import psycopg

from omop_schema.exports import ExportState
from pipeline.core.errors import (
    AcceptedWithoutAddress,
    CooldownActive,
    EpicOmopError,
    KickOffUnknown,
    RemoteUnavailable,
    RequestBudgetSpent,
    TransientError,
)
from pipeline.core.settings import SiteSettings
from pipeline.extract.bulk.states import WINDOW_MARGIN, keep_cool_down
from pipeline.warehouse import export_jobs
from pipeline.warehouse.export_jobs import CoolDown, ExportJob
from pipeline.warehouse.next_kick_offs import forget_next, plan_next

__all__ = ["REFUSALS", "Attempt", "Refusal", "may_have_started", "raise_refusal"]

#: A server that answers so has seen the request and made nothing of it; a gateway (504) or a time-out (408) knows less.
_NOT_STARTED = frozenset({500, 502})

#: A refusal so soon after the end of the window is one of the clocks; the next try is so much later.
_CLOCKS_DIFFER = timedelta(hours=1)
_A_LITTLE_LATER = timedelta(minutes=10)

_WHO_TRIES = "Dagster's sensor makes it, or run the same command then."


@dataclass(frozen=True)
class Attempt:
    """A kick-off that failed at `now`."""

    connection: psycopg.Connection
    site: SiteSettings
    job: ExportJob
    now: datetime

    @property
    def group(self) -> str:
        return self.job.group_id or ""

    def put_cool_down(self, entry: CoolDown) -> None:
        export_jobs.put_cool_down(self.connection, self.site.name, self.site.client_id or "", self.group, entry)


@dataclass(frozen=True)
class Refusal:
    """One row of the rule: errors of this class (and `when` of them) leave the job in `state`.

    `plan` keeps the cool-down and the next try that follow, and returns the error to raise.
    """

    error: type[EpicOmopError]
    state: ExportState
    plan: Callable[[Attempt, EpicOmopError], EpicOmopError]
    when: Callable[[EpicOmopError], bool] | None = None

    def fits(self, error: EpicOmopError) -> bool:
        return isinstance(error, self.error) and (self.when is None or self.when(error))


def raise_refusal(attempt: Attempt, error: EpicOmopError) -> NoReturn:
    """Save what a kick-off that failed means for the job and for the next try, commit, and raise the error."""
    refusal = next(refusal for refusal in REFUSALS if refusal.fits(error))
    mark = export_jobs.mark_skipped if refusal.state == ExportState.SKIPPED else export_jobs.mark_failed
    mark(attempt.connection, attempt.job.export_id, error.message)
    planned = refusal.plan(attempt, error)
    attempt.connection.commit()
    raise planned from (None if planned is error else error)


def may_have_started(error: EpicOmopError) -> bool:
    """Whether a kick-off that failed so may have been the beginning of an export."""
    return isinstance(error, KickOffUnknown) and error.status not in _NOT_STARTED


def _until_window_ends(attempt: Attempt, _: EpicOmopError) -> EpicOmopError:
    next_try = _end_of_window(attempt)
    entry = CoolDown(next_try, "Epic says that this group was requested too recently.")
    attempt.put_cool_down(entry)
    plan_next(attempt.connection, attempt.site, attempt.group, attempt.now, entry.reason, not_before=next_try)
    return entry.error(attempt.site.name, attempt.group)


def _until_started_export_ends(attempt: Attempt, error: EpicOmopError) -> EpicOmopError:
    reason = "a kick-off without a clear answer may have started an export"
    end = keep_cool_down(attempt.connection, attempt.site, attempt.job, reason)
    if isinstance(error, TransientError):
        error.next_try = plan_next(
            attempt.connection, attempt.site, attempt.group, attempt.now, error.message, not_before=end
        )
    return error


def _until_it_passes(attempt: Attempt, error: EpicOmopError) -> EpicOmopError:
    """The next try is planned. A wait that the server asks for holds for everybody."""
    assert isinstance(error, TransientError)
    asked = error.next_try if error.next_try and error.next_try > attempt.now else None
    next_try = plan_next(attempt.connection, attempt.site, attempt.group, attempt.now, error.message, asked=asked)
    if asked and next_try and isinstance(error, RemoteUnavailable):
        attempt.put_cool_down(CoolDown(next_try, "the site asks to wait so long."))
    error.next_try = next_try
    if next_try:
        error.advice = f"The next try is due at {next_try:%Y-%m-%d %H:%M} UTC: {_WHO_TRIES}"
    else:
        error.advice = "It was refused for a whole window: the next schedule, or a run by hand, asks again."
    return error


def _until_something_changes(attempt: Attempt, error: EpicOmopError) -> EpicOmopError:
    forget_next(attempt.connection, attempt.site, attempt.group)
    return error


#: The first row that fits holds; the last one fits every error.
REFUSALS = (
    Refusal(CooldownActive, ExportState.SKIPPED, _until_window_ends),
    Refusal(RequestBudgetSpent, ExportState.SKIPPED, _until_it_passes),
    Refusal(AcceptedWithoutAddress, ExportState.FAILED, _until_started_export_ends),
    Refusal(KickOffUnknown, ExportState.FAILED, _until_started_export_ends, when=may_have_started),
    Refusal(TransientError, ExportState.FAILED, _until_it_passes),
    Refusal(EpicOmopError, ExportState.FAILED, _until_something_changes),
)


def _end_of_window(attempt: Attempt) -> datetime:
    """When Epic will accept the group again: by our own last kick-off if that explains the refusal, else a window
    from now, because another client program started the export."""
    now, window = attempt.now, timedelta(hours=attempt.site.kickoff_window_hours)
    last = export_jobs.last_started(attempt.connection, attempt.site.name, attempt.group)
    end = last + window + WINDOW_MARGIN if last else now - window
    if end > now:
        return min(end, now + window)
    # Its clock, or its window, is a little behind ours.
    return now + _A_LITTLE_LATER if now - end < _CLOCKS_DIFFER else now + window
