"""A crawl: the resources of listed patients by REST search, landed like an export (rule 14).

For sites without bulk export, and for single patients. Each type of each patient is durable before it is recorded
(`etl.crawl_search`), so that a crawl continues after any crash where it stood, and the landed files are the same as without
one. When all is asked for, the parts become an export of kind `crawl`, and `ingest` works on it.

What the server refuses is recorded and reported with its code; what fails for now is left for the next call, and the crawl
is not landed before it is whole, unless the caller accepts that.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import psycopg

from omop_schema.exports import ExportKind, ExportState
from pipeline.core.errors import (
    EpicOmopError,
    LandingError,
    ProtocolError,
    RemoteRefused,
    RemoteUnavailable,
    UsageError,
)
from pipeline.core.settings import SiteSettings
from pipeline.core.workflow import about_export, carried
from pipeline.extract.asked_types import with_asked_types
from pipeline.extract.bulk import new_job
from pipeline.extract.rest.client import RestClient, SearchRefused
from pipeline.extract.rest.session import rest_session
from pipeline.fhir.identity import SurrogateKeys
from pipeline.fhir.operation_outcome import NO_RESULTS, OPERATION_OUTCOME
from pipeline.fhir.search_page import SearchPage
from pipeline.landing.crawl_spool import CrawlSpool, SpoolEntry
from pipeline.landing.origin import ExportOrigin, write_origin
from pipeline.landing.store import LandedExport
from pipeline.warehouse import crawls, export_jobs
from pipeline.warehouse.crawls import CrawlSearch, SearchState
from pipeline.warehouse.erased import erased_patients
from pipeline.warehouse.export_jobs import ExportJob
from pipeline.warehouse.runtime import Runtime

__all__ = ["Crawl", "CrawlProgress", "crawl", "crawl_types", "left_crawls", "unfinished_crawls"]

_log = logging.getLogger(__name__)

#: (patients done, patients in the list)
CrawlProgress = Callable[[int, int], None]

#: Types that no patient has: they are fetched by reference (`pipeline/load/hydration.py`), or not at all.
_WITHOUT_PATIENT = frozenset(
    {
        "Medication",
        "Location",
        "Practitioner",
        "PractitionerRole",
        "Organization",
        "Group",
        "Questionnaire",
        "Binary",
        OPERATION_OUTCOME,
    }
)

#: As Epic's own files (rule 7).
_LINES_PER_FILE = 3000

#: So many failed searches in a row, of the patients themselves or of several types: the server is down.
_MOST_FAILURES = 3

#: So many failures of a type that never succeeded: the server cannot answer it; it is left for the next call.
_MOST_FAILURES_OF_A_TYPE = 5

#: Begins the label of a crawl that asks for everything.
_FULL = "full "

#: `_lastUpdated` is compared with the server's clock, and changes are written some time after their instant.
_OVERLAP = timedelta(minutes=10)


@dataclass
class Crawl:
    """Result of a crawl. Counts of resources and of patients' types; no id of a patient."""

    export: LandedExport
    patients: int = 0
    #: Patients whom the server does not know, or does not show.
    missing_patients: int = 0
    resources: Counter[str] = field(default_factory=Counter)
    #: (type, what the server answered) → patients for whom the type is not whole
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)


def crawl_types(site: SiteSettings) -> tuple[str, ...]:
    """The types that a crawl searches for: the patient first, who may turn out to be unknown."""
    own = [name for name in site.asked_types if name not in _WITHOUT_PATIENT]
    return tuple(sorted(own, key=lambda name: name != "Patient"))


def unfinished_crawls(runtime: Runtime, site: SiteSettings, *, landed: bool = False) -> dict[str, list[str]]:
    """The site's crawls that were begun and not landed, oldest first: label → list of patients.

    `landed`: also those that were landed and not loaded. `crawl` asks for nothing again then, and what it returns is to
    be loaded.
    """
    states = (ExportState.REQUESTED, ExportState.LANDED) if landed else (ExportState.REQUESTED,)
    with runtime.connect() as connection:
        found = [
            job for state in states for job in export_jobs.jobs_of_kind(connection, site.name, ExportKind.CRAWL, state)
        ]
        return {
            job.group_id or "": [patient for _, patient in crawls.patients(connection, job.export_id)]
            for job in sorted(found, key=lambda job: job.export_id)
        }


def crawl(
    runtime: Runtime,
    site: SiteSettings,
    patients: Sequence[str],
    *,
    full: bool = False,
    accept_failed: bool = False,
    label: str | None = None,
    client: RestClient | None = None,
    progress: CrawlProgress | None = None,
) -> Crawl:
    """Search, patient by patient, and land what was found; continues with the same crawl if it is not loaded yet.

    `full`: not only what changed since the last crawl (where the site knows `_lastUpdated`). `accept_failed`: land
    although searches failed for now. `label`: finish this one of `unfinished_crawls`, although the settings may have
    changed since. Raises RemoteUnavailable when searches failed (call again), SiteBusy while
    another process does this crawl, AuthenticationRefused, UnsafeRemote, ConfigurationError, LandingError.
    """
    site = with_asked_types(runtime.settings, site)
    label = label or _label(runtime, site, patients, full=full)
    full = label.startswith(_FULL)
    with (
        runtime.connect() as connection,
        export_jobs.site_lock(connection, site.name, export_jobs.SiteWork.CRAWL, label),
    ):
        job = crawls.open_crawl(connection, site.name, label) or _new(runtime, connection, site, label, patients)
        connection.commit()
        if job.state == ExportState.LANDED:
            landed = _open(runtime, connection, job)
            CrawlSpool(runtime.landing.draft_of(site.name, job.export_id)).discard()
        elif runtime.landing.is_finished(site.name, job.export_id):  # the process ended before the warehouse knew
            landed = _save(runtime, connection, runtime.landing.open(site.name, job.export_id))
        else:
            try:
                with nullcontext(client) if client else rest_session(runtime, site) as used:
                    run = _CrawlRun(runtime, site, used, job, full=full, progress=progress)
                    with about_export(job.export_id):
                        run.run()
                run.check_whole(accept_failed=accept_failed)
            except EpicOmopError as error:
                export_jobs.save_error(connection, job.export_id, error.message)
                connection.commit()
                raise
            landed = _save(runtime, connection, run.land())
        return _summary(connection, landed)


def left_crawls(runtime: Runtime, site: SiteSettings, patients: Sequence[str]) -> list[LandedExport]:
    """Landed crawls of other lists that a process left before they were loaded, oldest first."""
    own = {_label(runtime, site, patients, full=full) for full in (False, True)}
    with runtime.connect() as connection:
        jobs = export_jobs.jobs_of_kind(connection, site.name, ExportKind.CRAWL, ExportState.LANDED)
        return [_open(runtime, connection, job) for job in reversed(jobs) if job.group_id not in own]


def _open(runtime: Runtime, connection: psycopg.Connection, job: ExportJob) -> LandedExport:
    """A landed crawl. One whose files are damaged is given up, so that its patients are asked for again."""
    try:
        return runtime.landing.open(job.site, job.export_id)
    except LandingError as error:
        export_jobs.mark_failed(connection, job.export_id, error.message)
        connection.commit()
        raise


def _label(runtime: Runtime, site: SiteSettings, patients: Sequence[str], *, full: bool) -> str:
    """Names a crawl by what is asked for: the same call adopts it. A salted hash; says nothing of the patients."""
    searches = [f"{name}?{search}" for name in crawl_types(site) for search in site.searches_of(name)]
    parts = [runtime.settings.surrogate_salt, site.name, *searches, *sorted(patients)]
    return f"{_FULL if full else ''}crawl {hashlib.sha256(chr(31).join(parts).encode()).hexdigest()[:12]}"


def _new(
    runtime: Runtime, connection: psycopg.Connection, site: SiteSettings, label: str, patients: Sequence[str]
) -> ExportJob:
    """The job and its list in one transaction: there is no crawl without its patients. Erased ones are not asked for."""
    patients = _not_erased(runtime, connection, site, patients)
    job = new_job(
        runtime,
        connection,
        site.name,
        ExportKind.CRAWL,
        group=label,
        resource_types=crawl_types(site),
        patients=patients,
    )
    _log.info("Crawl %d of site %s: %d patients.", job.export_id, site.name, len(patients))
    return job


def _not_erased(
    runtime: Runtime, connection: psycopg.Connection, site: SiteSettings, patients: Sequence[str]
) -> list[str]:
    erased = erased_patients(connection, site.name)
    keys = SurrogateKeys(site.name, runtime.settings.surrogate_salt)
    kept = [patient for patient in patients if not erased or keys.of("Patient", patient) not in erased]
    if len(kept) < len(patients):
        _log.warning("%d listed patients of site %s were erased: not asked for.", len(patients) - len(kept), site.name)
    if patients and not kept:
        raise UsageError("All listed patients were erased.", "Nothing is to be crawled; take them off the list.")
    return kept


def _save(runtime: Runtime, connection: psycopg.Connection, landed: LandedExport) -> LandedExport:
    export_jobs.save_landed(connection, landed, runtime.clock.now())
    connection.commit()
    CrawlSpool(runtime.landing.draft_of(landed.site, landed.export_id)).discard()
    return landed


def _summary(connection: psycopg.Connection, landed: LandedExport) -> Crawl:
    result = Crawl(landed, patients=len(crawls.patients(connection, landed.export_id)))
    for search in crawls.searches(connection, landed.export_id):
        result.resources[search.resource_type] += search.resources
        if search.state == "missing" or (search.resource_type == "Patient" and search.state == "refused"):
            result.missing_patients += 1
        if search.state in ("incomplete", "refused", "failed"):
            codes = search.codes or {"no answer": 1}
            result.refused.update((search.resource_type, code) for code in codes)
    return result


class _Ledger:
    """What is recorded of a crawl, for all its workers."""

    def __init__(self, connection: psycopg.Connection, export_id: int) -> None:
        self._connection = connection
        self._export_id = export_id
        self._lock = threading.Lock()
        self._known = {
            (search.position, search.resource_type): search for search in crawls.searches(connection, export_id)
        }
        self.since = crawls.last_searches(connection, export_id)
        self.patients = crawls.patients(connection, export_id)
        connection.commit()

    def done(self, position: int, resource_type: str) -> CrawlSearch | None:
        """What is recorded; None also for a failed one, which is repeated."""
        found = self._known.get((position, resource_type))
        return None if found is None or found.state == "failed" else found

    def save(self, search: CrawlSearch) -> None:
        with self._lock:
            crawls.save_search(self._connection, self._export_id, search)
            self._connection.commit()
            self._known[search.position, search.resource_type] = search

    def report(self, progress: str) -> None:
        with self._lock:
            crawls.save_progress(self._connection, self._export_id, progress)
            self._connection.commit()

    def failed(self) -> int:
        return sum(search.state == "failed" for search in self._known.values())


class _CrawlRun:
    def __init__(
        self,
        runtime: Runtime,
        site: SiteSettings,
        client: RestClient,
        job: ExportJob,
        *,
        full: bool,
        progress: CrawlProgress | None,
    ) -> None:
        self._runtime = runtime
        self._site = site
        self._client = client
        self._job = job
        self._full = full
        self._progress = progress or (lambda _done, _total: None)
        self._draft = runtime.landing.begin(site.name, job.export_id)
        self._spool = CrawlSpool(self._draft)
        self._stop = threading.Event()
        self._failures: list[str] = []
        self._failures_of: Counter[str] = Counter()
        self._not_reached = 0
        self._failed = 0

    def run(self) -> None:
        """Ask for what is not recorded yet, some patients side by side; the first error that is not passing ends it."""
        self._not_granted = self._check_access()
        with self._runtime.connect() as connection:
            self._ledger = _Ledger(connection, self._job.export_id)
            with ThreadPoolExecutor(self._site.rest_workers, "crawl") as pool:
                futures = [pool.submit(carried(self._patient), *patient) for patient in self._ledger.patients]
                try:
                    for done, future in enumerate(as_completed(futures), start=1):
                        self._not_reached += not future.result()
                        self._ledger.report(f"{done - self._not_reached} of {len(futures)} patients")
                        self._progress(done, len(futures))
                except BaseException:
                    self._stop.set()
                    pool.shutdown(wait=True, cancel_futures=True)
                    raise
            self._failed = self._ledger.failed()

    def _check_access(self) -> frozenset[str]:
        """Types that the token does not cover: named as refused, not asked for patient by patient (rule 8)."""
        session = self._client.session
        session.transport.retrying(lambda: session.tokens.current(session.transport))
        missing = frozenset(session.tokens.missing_types())
        if "Patient" in missing:
            raise RemoteRefused(
                f"Site {self._site.name} grants no access to Patient: no patient could be crawled.",
                "Register Patient.Search for the app, and wait until the site has synchronised it.",
            )
        return missing

    def check_whole(self, *, accept_failed: bool) -> None:
        """Raises RemoteUnavailable where searches failed for now, or the server was down before all was asked for."""
        if self._not_reached or (self._failed and not accept_failed):
            waiting = f"{self._failed:,} searches failed, {self._not_reached:,} patients were not reached"
            raise RemoteUnavailable(
                f"Crawl {self._job.export_id} of site {self._site.name} is not whole: {waiting}.",
                "Run the same command again: it continues where it was. --accept-failed lands what is there.",
            )

    def land(self) -> LandedExport:
        files, outcomes = self._spool.assemble(_LINES_PER_FILE)
        job = self._job
        write_origin(self._draft.folder, ExportOrigin(job.group_id, job.resource_types, job.requested_at))
        return self._draft.finish(ExportKind.CRAWL, self._job.requested_at, files, outcomes=outcomes)

    def _patient(self, position: int, patient_id: str) -> bool:
        """All types of one patient; False when the run was stopped before."""
        for resource_type in self._job.resource_types:
            if self._stop.is_set():
                return False
            search = self._ledger.done(position, resource_type)
            if search is None:
                search = self._searched(position, patient_id, resource_type)
                self._ledger.save(search)
                self._count_failure(search)
            if resource_type == "Patient" and search.state in ("missing", "refused", "failed"):
                return True  # nothing of a patient who is not there; a failed search is repeated by the next call
        return True

    def _count_failure(self, search: CrawlSearch) -> None:
        """A type that fails for everybody is one thing, a server that answers nothing another."""
        if search.state != "failed":
            self._failures = []
            self._failures_of[search.resource_type] = -(1 << 30)
            return
        self._failures = [*self._failures, search.resource_type]
        self._failures_of[search.resource_type] += 1
        several = "Patient" in self._failures or len(set(self._failures)) > 1
        if several and len(self._failures) >= _MOST_FAILURES:
            self._stop.set()

    def _searched(self, position: int, patient_id: str, resource_type: str) -> CrawlSearch:
        """The searches for one type, put together: a resource that two of them find is one line."""
        started = self._runtime.clock.now()
        searches = self._site.searches_of(resource_type)
        asked = " ".join(searches)
        if resource_type in self._not_granted:
            return CrawlSearch(position, resource_type, "refused", 0, started, asked, {"not granted": 1})
        if self._failures_of[resource_type] >= _MOST_FAILURES_OF_A_TYPE:
            return CrawlSearch(position, resource_type, "failed", 0, started, asked)
        since = self._since(position, resource_type, asked)
        with self._spool.entry(position, resource_type) as entry:
            found = _Found(entry)
            try:
                for search in searches:
                    found.take(self._pages(patient_id, resource_type, search, since))
            except (RemoteUnavailable, ProtocolError) as error:
                _log.warning("%s", error.message)
                return CrawlSearch(position, resource_type, "failed", 0, started, asked)
            entry.commit()
        state = found.state(len(searches), nothing_is_missing=resource_type == "Patient")
        return CrawlSearch(position, resource_type, state, entry.lines, started, asked, found.codes)

    def _since(self, position: int, resource_type: str, asked: str) -> datetime | None:
        if self._full or not self._site.search_last_updated or resource_type == "Patient":
            return None
        return self._ledger.since.get((position, resource_type, asked))

    def _pages(self, patient_id: str, resource_type: str, search: str, since: datetime | None) -> Iterator[SearchPage]:
        own = "_id" if resource_type == "Patient" else "patient"  # not by a read: its address would hold the id
        parameters = [(own, patient_id), *urllib.parse.parse_qsl(search), ("_count", str(self._site.search_count))]
        if since is not None:
            parameters.append(("_lastUpdated", f"ge{(since - _OVERLAP).isoformat(timespec='seconds')}"))
        return self._client.search(resource_type, parameters)


class _Found:
    """What the searches for one type of one patient found, and what the server answered besides."""

    def __init__(self, entry: SpoolEntry) -> None:
        self._entry = entry
        self._ids: set[tuple[str, str]] = set()
        self._refused = 0
        self._incomplete = False
        self.codes: Counter[str] = Counter()

    def take(self, pages: Iterator[SearchPage]) -> None:
        """The pages of one search; a refusal is counted, and does not end the others."""
        try:
            for page in pages:
                self._page(page)
        except SearchRefused as refusal:
            if NO_RESULTS in refusal.codes:
                return
            self._refused += 1
            self.codes.update(refusal.codes)

    def _page(self, page: SearchPage) -> None:
        for resource_type, resource_id, line in page.resources:
            if (resource_type, resource_id) not in self._ids:
                self._ids.add((resource_type, resource_id))
                self._entry.add(resource_type, line)
        for line in page.outcomes:
            self._entry.add(OPERATION_OUTCOME, line)
        for issue in page.issues:
            if issue.verdict != "informational":
                self.codes[issue.code] += 1
            self._incomplete |= issue.verdict == "refused"

    def state(self, searches: int, *, nothing_is_missing: bool) -> SearchState:
        if self._refused == searches:
            return "refused"
        if self._refused or self._incomplete:
            return "incomplete"
        return "missing" if nothing_is_missing and not self._ids else "complete"
