"""The files of one complete bulk export: fetched in parallel, verified, resumed by byte and by file.

A file's place in the manifest gives its number, and the hash of its address says which file that is: an interrupted
run finds what it has, also after the manifest was read again in another order. Nothing here waits or repeats by
itself: that is the transport's.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace

from pipeline.epic import bulk_export
from pipeline.epic.bulk_export import Manifest, ManifestFile
from pipeline.epic.ranges import OVERLAP_BYTES, OtherContent, ResumePoint, continuation, range_headers, validator_of
from pipeline.epic.session import EpicSession
from pipeline.epic.transport import StreamedAnswer
from pipeline.errors import ExportGone, RemoteUnavailable, UnsafeRemote
from pipeline.landing.files import FileDigest
from pipeline.landing.gzip_stream import DamagedGzipError
from pipeline.landing.partial import PartialFile
from pipeline.landing.store import Category, LandedExport, LandedFile, LandingDraft, LandingProgress, ProgressCallback
from pipeline.warehouse.export_jobs import ExportJob
from pipeline.workflow import carried

__all__ = ["ExportDownload"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Place:
    """One file of the manifest. `source` is a hash of its address: which file it is, whatever its number."""

    category: Category
    number: int
    entry: ManifestFile
    source: str


class _OtherCount(RemoteUnavailable):
    """A file stays shorter than the manifest's `count`, which is perhaps wrong."""


class _ReadAgain(Exception):
    """The manifest was read again and other places hold now."""


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
        self._read_again = False
        self._second_round = False
        self._lock = threading.Lock()
        self._files_done = 0
        self._places = _places(self._manifest)

    def run(self) -> LandedExport:
        """Fetch what is missing and finish the draft.

        The first failure stops the others after the files that they are at; complete files stay, and of the others
        what came. Raises ExportGone when a file is lost, RemoteUnavailable after the last attempt, UnsafeRemote,
        RemoteRefused, LandingError.
        """
        try:
            found = self._fetched()
        except _ReadAgain:
            self._second_round = True
            found = self._fetched()
        return self._draft.finish(
            "bulk",
            self._manifest.transaction_time,
            _of_category(found, "files"),
            outcomes=_of_category(found, "outcomes"),
            deleted=_of_category(found, "deleted"),
        )

    def _fetched(self) -> dict[_Place, LandedFile]:
        self._files_done = 0
        found: dict[_Place, LandedFile] = {}
        with ThreadPoolExecutor(self._session.site.download_workers, "download") as pool:
            places = {pool.submit(carried(self._file), place): place for place in self._places}
            try:
                for future in as_completed(places):
                    found[places[future]] = future.result()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        return found

    def _file(self, place: _Place) -> LandedFile:
        landed = self._draft.landed(place.number, place.entry.resource_type, place.category, source=place.source)
        if landed is None:
            try:
                landed = self._download(place)
            except (ExportGone, UnsafeRemote, _OtherCount):
                if self._second_round:
                    raise
                self._read_manifest_again()
                raise _ReadAgain from None
        with self._lock:
            self._files_done += 1
        self._report(landed.path.name, 0)
        return landed

    def _download(self, place: _Place) -> LandedFile:
        entry = place.entry
        with self._draft.partial(place.number, entry.resource_type, place.category, place.source) as part:
            bulk_export.download(
                self._session,
                entry,
                _FileReceiver(part, entry.count, lambda added: self._report(part.path.name, added)),
                status_url=self._job.status_url or "",
                requires_access_token=self._manifest.requires_access_token,
            )
            return self._draft.keep(
                part, place.number, entry.resource_type, expected_count=entry.count, source=place.source
            )

    def _read_manifest_again(self) -> None:
        """A file is gone, or its address or count cannot be right: the site may have mended that. The manifest is read
        again once, by whoever needs it first."""
        with self._lock:
            if self._read_again:
                return
            self._read_again = True
            manifest = _in_order_of(self._manifest, self._new_manifest())
            self._save_manifest(manifest)
            self._manifest, self._places = manifest, _places(manifest)

    def _new_manifest(self) -> Manifest:
        session, job = self._session, self._job
        status = session.transport.retrying(lambda: bulk_export.poll(session, job.status_url or ""))
        if not isinstance(status, Manifest) or status.transaction_time != self._manifest.transaction_time:
            message = f"Export {job.export_id} of site {job.site}: a file is gone and the manifest is another one now."
            raise ExportGone(message, "A new export is needed.")
        return status

    def _report(self, name: str, added: int) -> None:
        if self._progress:
            self._progress(LandingProgress(name, self._files_done, len(self._places), added))


class _FileReceiver:
    """Writes one file, going on where an earlier attempt or process stopped, and compares its lines with `count`."""

    def __init__(self, part: PartialFile, expected: int | None, report: Callable[[int], None]) -> None:
        self._part = part
        self._expected = expected
        self._report = report
        self._point: ResumePoint | None = None
        self._longer_before: FileDigest | None = None

    def headers(self) -> Mapping[str, str]:
        part = self._part
        self._point = None
        if part.bytes_written > OVERLAP_BYTES:
            self._point = ResumePoint(part.bytes_written - OVERLAP_BYTES, part.tail(OVERLAP_BYTES), part.validator)
        return range_headers(self._point)

    def __call__(self, answer: StreamedAnswer) -> None:
        try:
            for chunk in self._following(answer):
                self._part.write(chunk)
                self._report(len(chunk))
        except OtherContent:
            self._part.restart()
            raise RemoteUnavailable(
                f"{answer.request.action}: the server has other content than what came before.",
                "The file is fetched from its beginning.",
            ) from None
        except RemoteUnavailable as error:
            if isinstance(error.__cause__, DamagedGzipError):
                self._part.restart()
            raise
        self._compare()

    def _following(self, answer: StreamedAnswer) -> Iterator[bytes]:
        if self._point is not None and answer.status != 200:
            _log.info("%s goes on at byte %d.", self._part.path.name, self._part.bytes_written)
            return continuation(self._point, answer)
        self._part.restart(validator_of(answer.headers))  # the whole file: the server knows no ranges, or a new version
        return answer.chunks

    def _compare(self) -> None:
        digest = self._part.digest()
        if self._expected is None or digest.lines == self._expected or self._is_longer_again(digest):
            return
        self._part.restart()
        raise _OtherCount(
            f"{self._part.path.name} came with {digest.lines} lines; the manifest says {self._expected}.",
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
            self._part.path.name,
            digest.lines,
            self._expected,
        )
        return True


def _lists(manifest: Manifest) -> Iterator[tuple[Category, tuple[ManifestFile, ...]]]:
    yield "files", manifest.output
    yield "outcomes", manifest.outcomes
    yield "deleted", manifest.deleted


def _places(manifest: Manifest) -> list[_Place]:
    """Files numbered from 1 through output, outcomes and deleted, in the manifest's order."""
    sources = _sources(manifest)
    places: list[_Place] = []
    for category, entries in _lists(manifest):
        for entry in entries:
            places.append(_Place(category, len(places) + 1, entry, sources[entry.url]))
    return places


def _sources(manifest: Manifest) -> dict[str, str]:
    """Address → hash of what names the file in it: without the query, in which signatures change from time to time;
    with it where the addresses would not differ otherwise."""
    urls = [entry.url for _, entries in _lists(manifest) for entry in entries]
    names = {url: urllib.parse.urlsplit(url)._replace(query="", fragment="").geturl() for url in urls}
    twice = {name for name, count in Counter(names.values()).items() if count > 1}
    return {url: hashlib.sha256((url if name in twice else name).encode()).hexdigest() for url, name in names.items()}


def _in_order_of(known: Manifest, new: Manifest) -> Manifest:
    """The manifest that was read again, with the files that are known in their order, so that they keep their
    numbers; a file with a new address takes the place of one that is not listed any more."""
    old_sources, new_sources = _sources(known), _sources(new)

    def ordered(before: Sequence[ManifestFile], now: Sequence[ManifestFile]) -> tuple[ManifestFile, ...]:
        by_source = {new_sources[entry.url]: entry for entry in now}
        old = [old_sources[entry.url] for entry in before]
        others = iter([entry for entry in now if new_sources[entry.url] not in set(old)])
        kept = [by_source.get(source) or next(others, None) for source in old]
        return (*(entry for entry in kept if entry is not None), *others)

    return replace(
        new,
        output=ordered(known.output, new.output),
        outcomes=ordered(known.outcomes, new.outcomes),
        deleted=ordered(known.deleted, new.deleted),
    )


def _of_category(found: Mapping[_Place, LandedFile], category: Category) -> tuple[LandedFile, ...]:
    files = [file for place, file in found.items() if place.category == category]
    return tuple(sorted(files, key=lambda file: file.number))
