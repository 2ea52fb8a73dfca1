"""The files of one complete bulk export: fetched in parallel, verified, resumed by file.

A file's place in the manifest gives its number, so an interrupted run finds what it has. Nothing here waits or
repeats by itself: that is the transport's.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from pipeline.epic import bulk_export
from pipeline.epic.bulk_export import Manifest, ManifestFile
from pipeline.epic.session import EpicSession
from pipeline.errors import ExportGone, RemoteUnavailable
from pipeline.landing.files import FileDigest, LandingWriter
from pipeline.landing.store import Category, LandedExport, LandedFile, LandingDraft, LandingProgress, ProgressCallback
from pipeline.warehouse.export_jobs import ExportJob

__all__ = ["ExportDownload"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Place:
    """A file's place in the manifest, which stays the same when the manifest is read again."""

    category: Category
    index: int
    number: int
    resource_type: str


class ExportDownload:
    """The files of one export on their way into its draft. `save_manifest` keeps a manifest that was read again."""

    def __init__(
        self,
        session: EpicSession,
        job: ExportJob,
        draft: LandingDraft,
        *,
        save_manifest: Callable[[Manifest], None],
        progress: ProgressCallback | None = None,
    ) -> None:
        self._save_manifest = save_manifest
        self._session = session
        self._job = job
        self._draft = draft
        self._progress = progress
        self._manifest = bulk_export.parse_manifest(job.manifest or {})
        self._refreshed = False
        self._lock = threading.Lock()
        self._files_done = 0
        self._places = _places(self._manifest)

    def run(self) -> LandedExport:
        """Fetch what is missing and finish the draft.

        The first failure stops the others after the files that they are at; complete files stay. Raises ExportGone
        when a file is lost, RemoteUnavailable after the last attempt, UnsafeRemote, RemoteRefused, LandingError.
        """
        found: dict[_Place, LandedFile] = {}
        with ThreadPoolExecutor(self._session.site.download_workers, "download") as pool:
            places = {pool.submit(self._file, place): place for place in self._places}
            try:
                for future in as_completed(places):
                    found[places[future]] = future.result()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        return self._draft.finish(
            "bulk",
            self._manifest.transaction_time,
            _of_category(found, "files"),
            outcomes=_of_category(found, "outcomes"),
            deleted=_of_category(found, "deleted"),
        )

    def _file(self, place: _Place) -> LandedFile:
        landed = self._draft.landed(place.number, place.resource_type, place.category)
        if landed is None:
            manifest = self._manifest
            try:
                landed = self._download(place, manifest)
            except ExportGone:
                landed = self._download(place, self._manifest_read_again())
        with self._lock:
            self._files_done += 1
        self._report(landed.path.name, 0)
        return landed

    def _download(self, place: _Place, manifest: Manifest) -> LandedFile:
        entry = _entry(manifest, place)
        with self._draft.writer(place.number, place.resource_type, place.category) as writer:
            receive = _Receiver(writer, entry.count, lambda added: self._report(writer.path.name, added))
            bulk_export.download(
                self._session,
                entry,
                receive,
                status_url=self._job.status_url or "",
                requires_access_token=manifest.requires_access_token,
            )
            return self._draft.keep(writer, place.number, place.resource_type, expected_count=entry.count)

    def _manifest_read_again(self) -> Manifest:
        """A file is gone: its address may be new. The manifest is read again once, whoever needs it first."""
        with self._lock:
            if not self._refreshed:
                self._refreshed = True
                self._manifest = self._new_manifest()
            return self._manifest

    def _new_manifest(self) -> Manifest:
        session, job = self._session, self._job
        status = session.transport.retrying(lambda: bulk_export.poll(session, job.status_url or ""))
        if not isinstance(status, Manifest) or _places(status) != self._places:
            message = f"Export {job.export_id} of site {job.site}: a file is gone and the manifest is another one now."
            raise ExportGone(message, "A new export is needed.")
        self._save_manifest(status)
        return status

    def _report(self, name: str, added: int) -> None:
        if self._progress:
            self._progress(LandingProgress(name, self._files_done, len(self._places), added))


class _Receiver:
    """Writes one file and compares its lines with the manifest's `count`; called anew for each attempt."""

    def __init__(self, writer: LandingWriter, expected: int | None, report: Callable[[int], None]) -> None:
        self._writer = writer
        self._expected = expected
        self._report = report
        self._longer_before: FileDigest | None = None

    def __call__(self, chunks: Iterator[bytes]) -> None:
        self._writer.restart()
        for chunk in chunks:
            self._writer.write(chunk)
            self._report(len(chunk))
        digest = self._writer.digest()
        if self._expected is not None and digest.lines != self._expected and not self._is_longer_again(digest):
            raise RemoteUnavailable(
                f"{self._writer.path.name} came with {digest.lines} lines; the manifest says {self._expected}.",
                "The file is fetched again by the next run; the export stays on the server.",
            )

    def _is_longer_again(self, digest: FileDigest) -> bool:
        """More than announced, and twice the same bytes: the count is wrong (some servers say 0), nothing is lost."""
        if digest.lines < (self._expected or 0):
            return False
        before, self._longer_before = self._longer_before, digest
        if before != digest:
            return False
        _log.warning(
            "%s has %d lines, more than the %s of the manifest; kept.",
            self._writer.path.name,
            digest.lines,
            self._expected,
        )
        return True


def _places(manifest: Manifest) -> list[_Place]:
    """Files numbered from 1 through output, outcomes and deleted, in the manifest's order."""
    lists: list[tuple[Category, tuple[ManifestFile, ...]]] = [
        ("files", manifest.output),
        ("outcomes", manifest.outcomes),
        ("deleted", manifest.deleted),
    ]
    places: list[_Place] = []
    for category, entries in lists:
        for index, entry in enumerate(entries):
            places.append(_Place(category, index, len(places) + 1, entry.resource_type))
    return places


def _entry(manifest: Manifest, place: _Place) -> ManifestFile:
    entries = {"files": manifest.output, "outcomes": manifest.outcomes, "deleted": manifest.deleted}
    return entries[place.category][place.index]


def _of_category(found: Mapping[_Place, LandedFile], category: Category) -> tuple[LandedFile, ...]:
    files = [file for place, file in found.items() if place.category == category]
    return tuple(sorted(files, key=lambda file: file.number))
