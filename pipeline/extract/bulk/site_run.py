"""All groups of a site in one command that waits: kick-off, polls when they are due, download."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from omop_schema.exports import ExportState
from pipeline.core.errors import EpicOmopError, RemoteUnavailable
from pipeline.core.settings import SiteSettings
from pipeline.extract.bulk.fetching import download, types_not_received
from pipeline.extract.bulk.kick_off import open_or_adopt
from pipeline.extract.bulk.polling import poll_once
from pipeline.extract.bulk.request import check_since
from pipeline.extract.bulk.times import KeepFutureTime
from pipeline.extract.notes import export_notes
from pipeline.extract.site_session import site_session
from pipeline.extract.smart.session import EpicSession
from pipeline.landing.store import LandedExport, LandingProgress
from pipeline.warehouse.export_jobs import ExportJob
from pipeline.warehouse.runtime import Runtime

__all__ = ["EventCallback", "ExportEvent", "SiteExport", "export_groups", "export_site"]

#: A command that waits gives up after so many failed status calls in a row; the job stays open.
_FAILED_POLLS = 10


@dataclass(frozen=True)
class ExportEvent:
    """Something that happened to a group's export, for whoever shows progress."""

    group: str
    state: str
    detail: str = ""
    landing: LandingProgress | None = None


@dataclass(frozen=True)
class SiteExport:
    """Result of a site's groups: what is landed, and why the others are not."""

    landed: tuple[LandedExport, ...] = ()
    failures: Mapping[str, EpicOmopError] = field(default_factory=dict)
    #: By export id: types that were asked for and did not come.
    missing_types: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    #: By export id: all that is to be reported besides, a sentence each.
    notes: Mapping[int, Sequence[str]] = field(default_factory=dict)


EventCallback = Callable[[ExportEvent], None]


def export_site(runtime: Runtime, site: SiteSettings, progress: EventCallback | None = None) -> list[LandedExport]:
    """Export all groups of a site and wait until they are landed.

    A group that fails does not delay the others. Raises the first failure after all groups have come to an end;
    the landed ones stay in the state `landed`.
    """
    result = export_groups(runtime, site, site.groups, progress)
    for error in result.failures.values():
        raise error
    return list(result.landed)


def export_groups(
    runtime: Runtime,
    site: SiteSettings,
    groups: Sequence[str],
    progress: EventCallback | None = None,
    *,
    since: datetime | None = None,
    keep_future_time: KeepFutureTime | None = None,
) -> SiteExport:
    """Export the groups of a site side by side and wait. Raises ConfigurationError; failures of groups are returned.

    `since`: exports that are started now hold what changed from then on, and nothing vanishes by them.
    `keep_future_time` asks a person about a transactionTime that is ahead of our clock; without, our own counts.
    """
    check_since(site, since)
    with site_session(runtime, site) as session:
        return _SiteRun(runtime, site, session, progress or (lambda _: None), since, keep_future_time).run(groups)


class _SiteRun:
    """The waiting of a command: polls each open export when it is due, downloads it when it is complete."""

    def __init__(
        self,
        runtime: Runtime,
        site: SiteSettings,
        session: EpicSession,
        report: EventCallback,
        since: datetime | None = None,
        keep_future_time: KeepFutureTime | None = None,
    ) -> None:
        self._since = since
        self._keep_future_time = keep_future_time
        self._runtime = runtime
        self._site = site
        self._session = session
        self._report = report
        self._failures: dict[str, EpicOmopError] = {}
        self._landed: list[LandedExport] = []
        self._missing: dict[int, tuple[str, ...]] = {}
        self._notes: dict[int, Sequence[str]] = {}
        self._failed_polls: dict[int, int] = {}

    def run(self, groups: Sequence[str]) -> SiteExport:
        waiting = [job for group in groups if (job := self._open(group))]
        while waiting:
            job = min(waiting, key=lambda job: job.next_poll_at or job.requested_at)
            waiting.remove(job)
            later = self._step(job)
            if later:
                waiting.append(later)
        return SiteExport(tuple(self._landed), self._failures, self._missing, self._notes)

    def _open(self, group: str) -> ExportJob | None:
        try:
            job = open_or_adopt(self._runtime, self._site, group, since=self._since, session=self._session)
        except EpicOmopError as error:
            self._fail(group, error)
            return None
        self._report(ExportEvent(group, job.state, job.progress or ""))
        return job

    def _step(self, job: ExportJob) -> ExportJob | None:
        """One poll when it is due, or the download; None when the group has come to its end."""
        group = job.group_id or ""
        try:
            if job.state == ExportState.RUNNING:
                self._wait_until(job.next_poll_at)
                return self._poll(job)
            landed = download(
                self._runtime, job, lambda step: self._report_progress(group, step), session=self._session
            )
        except EpicOmopError as error:
            self._fail(group, error)
            return None
        self._landed.append(landed)
        self._missing[job.export_id] = types_not_received(job, landed)
        with self._runtime.connect() as connection:
            self._notes[job.export_id] = export_notes(connection, [job.export_id]).sentences()
        self._report(ExportEvent(group, "landed", f"{len(landed.files)} files, {landed.lines} resources"))
        return None

    def _poll(self, job: ExportJob) -> ExportJob:
        job = poll_once(self._runtime, job, session=self._session, keep_future_time=self._keep_future_time)
        failures = self._failed_polls.get(job.export_id, 0) + 1 if job.error else 0
        self._failed_polls[job.export_id] = failures
        if failures >= _FAILED_POLLS:
            message = f"Export {job.export_id} of site {job.site}: {failures} status calls in a row failed."
            advice = "The export stays open: run the same command again later and it continues."
            raise RemoteUnavailable(message, advice, next_try=job.next_poll_at)
        self._report(ExportEvent(job.group_id or "", job.state, job.error or job.progress or ""))
        return job

    def _wait_until(self, instant: datetime | None) -> None:
        wait = (instant - self._runtime.clock.now()).total_seconds() if instant else 0.0
        if wait > 0:
            self._runtime.clock.sleep(wait)

    def _report_progress(self, group: str, step: LandingProgress) -> None:
        self._report(ExportEvent(group, "complete", landing=step))

    def _fail(self, group: str, error: EpicOmopError) -> None:
        self._failures[group] = error
        self._report(ExportEvent(group, "failed", error.message))
