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
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace

from pipeline.core.errors import (
    AuthenticationRefused,
    EpicOmopError,
    ExportGone,
    PermanentError,
    RemoteRefused,
    RemoteUnavailable,
    Unreachable,
    UnsafeRemote,
    UnusableAddress,
)
from pipeline.core.workflow import carried
from pipeline.extract.bulk import protocol
from pipeline.extract.bulk.protocol import Manifest, ManifestFile
from pipeline.extract.http.ranges import (
    OVERLAP_BYTES,
    OtherContent,
    ResumePoint,
    continuation,
    range_headers,
    validator_of,
)
from pipeline.extract.http.transport import StreamedResponse
from pipeline.extract.smart.session import EpicSession
from pipeline.fhir.gzip_stream import DamagedGzipError
from pipeline.landing.content import ContentCheck
from pipeline.landing.files import FileDigest
from pipeline.landing.origin import ExportOrigin, Gap, GapReason, write_origin
from pipeline.landing.partial import PartialFile
from pipeline.landing.store import Category, LandedExport, LandedFile, LandingDraft, LandingProgress, ProgressCallback
from pipeline.warehouse.export_jobs import ExportJob

__all__ = ["ExportDownload"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Position:
    """One file of the manifest. `source` is a hash of its address: which file it is, whatever its number."""

    category: Category
    number: int
    entry: ManifestFile
    source: str


class _OtherCount(RemoteUnavailable):
    """A file has another number of lines than the manifest's `count`."""


class _NotOfItsType(RemoteUnavailable):
    """What came as a file is none of its type."""


class _SureCount(Exception):
    """A file came twice with the same bytes, and with another number of lines than the manifest says."""


class _ReadAgain(Exception):
    """The manifest was read again and other places hold now."""


#: Failures of one file, which say nothing of the others. RemoteRefused: without 401, which is an AuthenticationRefused.
_OF_THE_FILE = (ExportGone, UnsafeRemote, RemoteRefused, _OtherCount, _NotOfItsType)


class ExportDownload:
    """The files of one export on their way into its draft. `save_manifest` keeps a manifest that was read again.

    `is_last_try`: files that cannot be had are left out from now on, so that one does not delay the others for ever.
    `gaps` says afterwards what is not as the manifest announced it.
    """

    def __init__(
        self,
        session: EpicSession,
        job: ExportJob,
        draft: LandingDraft,
        *,
        save_manifest: Callable[[Manifest], None],
        progress: ProgressCallback | None = None,
        is_last_try: bool = False,
    ) -> None:
        self._save_manifest = save_manifest
        self._session = session
        self._job = job
        self._draft = draft
        self._progress = progress
        self._is_last_try = is_last_try
        self._manifest = protocol.parse_manifest(job.manifest or {})
        self._read_again = False
        self._second_round = False
        self._lock = threading.Lock()
        self._files_done = 0
        self._positions = _positions(self._manifest)
        #: Hash of an address → what came from it before, so that a wrong `count` is known by equal bytes.
        self._digests: dict[str, FileDigest] = {}
        self._left_out: dict[_Position, Gap] = {}
        self._unusable: UnusableAddress | None = None
        self.gaps: tuple[Gap, ...] = ()

    def run(self) -> LandedExport:
        """Fetch what is missing and finish the draft, with what is known of it beside.

        A file that is lost (404) or whose address can never be used, also after the manifest was read again, is left out
        and becomes a gap. A failure that is not of one file stops the others after the files that they are at; complete
        files stay, and of the others what came. Raises ExportGone or UnusableAddress when no file is left, RemoteUnavailable
        after the last attempt, UnsafeRemote, RemoteRefused, LandingError.
        """
        try:
            found = self._fetch()
        except _ReadAgain:
            self._second_round = True
            found = self._fetch()
        files = _of_category(found, "files")
        if self._manifest.output and not files:
            if self._unusable:
                raise self._unusable
            message = f"No file of export {self._job.export_id} of site {self._job.site} can be had any more."
            raise ExportGone(message, "The next run after this group's window starts a new export.")
        counted = [
            Gap("files", file.number, file.resource_type, "count", file.expected_count, file.lines)
            for file in files
            if file.expected_count not in (None, file.lines)
        ]
        self.gaps = tuple(sorted((*self._left_out.values(), *counted), key=lambda gap: gap.number))
        write_origin(self._draft.folder, self._origin())
        return self._draft.finish(
            "bulk",
            self._job.transaction_time or self._job.requested_at,
            files,
            outcomes=_of_category(found, "outcomes"),
            deleted=_of_category(found, "deleted"),
        )

    def _origin(self) -> ExportOrigin:
        job = self._job
        return ExportOrigin(job.group_id, job.resource_types, job.requested_at, job.since, job.notes, self.gaps)

    def _fetch(self) -> dict[_Position, LandedFile]:
        self._files_done = 0
        found: dict[_Position, LandedFile] = {}
        failure: EpicOmopError | None = None
        with ThreadPoolExecutor(self._session.site.download_workers, "download") as pool:
            positions = {pool.submit(carried(self._file), position): position for position in self._positions}
            try:
                for future in as_completed(positions):
                    try:
                        landed = future.result()
                    except _OF_THE_FILE as error:
                        failure = failure or error
                        continue
                    if landed is not None:
                        found[positions[future]] = landed
            except BaseException as error:
                pool.shutdown(wait=True, cancel_futures=True)
                if isinstance(failure, UnsafeRemote) and isinstance(error, EpicOmopError):
                    raise failure from None  # a forbidden address explains the others, and is to be heard of
                raise
        if failure is not None:
            raise failure
        return found

    def _file(self, position: _Position) -> LandedFile | None:
        """The landed file; None for one that is left out."""
        landed = self._draft.landed(
            position.number, position.entry.resource_type, position.category, source=position.source
        )
        if landed is None:
            try:
                landed = self._download(position)
            except _SureCount:
                self._read_manifest_again()
                raise _ReadAgain from None
            except (*_OF_THE_FILE, RemoteUnavailable) as error:
                if not self._is_of_the_file(error):
                    raise
                if not self._second_round:
                    self._read_manifest_again()
                    raise _ReadAgain from None
                self._leave_out(position, error)
        with self._lock:
            self._files_done += 1
        self._report(landed.path.name if landed else position.entry.resource_type, 0)
        return landed

    def _is_of_the_file(self, error: EpicOmopError) -> bool:
        """In the last try also what a server answers for that file alone: it does answer for the manifest."""
        return isinstance(error, _OF_THE_FILE) or (self._is_last_try and not isinstance(error, Unreachable))

    def _leave_out(self, position: _Position, error: EpicOmopError) -> None:
        """Note the file as a gap where the others are not to wait for it; else raise the error."""
        is_lost = isinstance(error, ExportGone)
        never = is_lost or isinstance(error, UnusableAddress)
        if not (never or position.category != "files" or self._is_last_try):
            raise error
        _log.warning("%s It is left out of export %d.", error.message, self._job.export_id)
        entry = position.entry
        reason: GapReason = "lost" if is_lost else "unusable"
        with self._lock:
            if isinstance(error, UnusableAddress):
                self._unusable = error
            self._left_out[position] = Gap(position.category, position.number, entry.resource_type, reason, entry.count)

    def _download(self, position: _Position) -> LandedFile:
        entry = position.entry
        if not entry.url:
            raise UnusableAddress(f"The manifest names no usable address for a file of {entry.resource_type}.")
        with self._draft.partial(position.number, entry.resource_type, position.category, position.source) as part:
            receiver = _FileReceiver(
                part,
                position,
                lambda added: self._report(part.path.name, added),
                self._digests,
                takes_any_count=self._second_round,
            )
            protocol.download(
                self._session,
                entry,
                receiver,
                status_url=self._job.status_url or "",
                requires_access_token=self._manifest.requires_access_token,
            )
            return self._draft.keep(
                part, position.number, entry.resource_type, expected_count=entry.count, source=position.source
            )

    def _read_manifest_again(self) -> None:
        """A file is gone, or its address, count or content cannot be right: the site may have corrected that. The
        manifest is read again once, by whoever needs it first; where it cannot be, the known one counts."""
        with self._lock:
            if self._read_again:
                return
            manifest = self._new_manifest()
            self._read_again = True
            if manifest is None:
                return
            manifest = _in_order_of(self._manifest, manifest)
            self._save_manifest(manifest)
            self._manifest, self._positions = manifest, _positions(manifest)

    def _new_manifest(self) -> Manifest | None:
        """None when the site has none any more, or that of something else. Raises RemoteUnavailable."""
        session, job = self._session, self._job
        try:
            status = session.transport.retrying(lambda: protocol.poll(session, job.status_url or ""))
        except AuthenticationRefused:
            raise
        except PermanentError as error:
            _log.warning("The manifest of export %d cannot be read again: %s", job.export_id, error.message)
            return None
        same = isinstance(status, Manifest) and status.transaction_time == self._manifest.transaction_time
        return status if isinstance(status, Manifest) and same else None

    def _report(self, name: str, added: int) -> None:
        if self._progress:
            self._progress(LandingProgress(name, self._files_done, len(self._positions), added))


#: So much of what an earlier process left is looked at for a resource.
_HEAD_BYTES = 1 << 20


class _FileReceiver:
    """Writes one file, continuing where an earlier attempt or process stopped, and looks whether it can be that file:
    a line of its type, and as many lines as `count` says."""

    def __init__(
        self,
        part: PartialFile,
        position: _Position,
        report: Callable[[int], None],
        digests: MutableMapping[str, FileDigest],
        *,
        takes_any_count: bool,
    ) -> None:
        self._part = part
        self._position = position
        self._report = report
        self._digests = digests
        self._takes_any_count = takes_any_count
        self._point: ResumePoint | None = None
        self._check = self._new_check()

    def _new_check(self) -> ContentCheck:
        return ContentCheck(self._position.entry.resource_type if self._position.category == "files" else None)

    def headers(self) -> Mapping[str, str]:
        part = self._part
        self._point = None
        if part.bytes_written > OVERLAP_BYTES:
            self._point = ResumePoint(part.bytes_written - OVERLAP_BYTES, part.tail(OVERLAP_BYTES), part.validator)
        return range_headers(self._point)

    def __call__(self, answer: StreamedResponse) -> None:
        try:
            for chunk in self._following(answer):
                self._part.write(chunk)
                self._check.add(chunk)
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
        self._check.end_line()
        self._compare()

    def _following(self, answer: StreamedResponse) -> Iterator[bytes]:
        self._check = self._new_check()
        if self._point is not None and answer.status != 200:
            _log.info("%s continues at byte %d.", self._part.path.name, self._part.bytes_written)
            self._check.add(self._part.head(_HEAD_BYTES))
            return continuation(self._point, answer)
        self._part.restart(validator_of(answer.headers))  # the whole file: the server knows no ranges, or a new version
        return answer.chunks

    def _compare(self) -> None:
        digest = self._part.digest()
        expected = self._position.entry.count if self._position.category != "outcomes" else None
        counts_differ = expected is not None and digest.lines != expected
        came = f"{self._part.path.name} came with {digest.lines} lines"
        if counts_differ:
            came = f"{came}; the manifest says {expected}"
        if digest.lines and not self._check.found:
            self._part.restart()
            raise _NotOfItsType(
                f"{came}, and none of them is a resource of that type: it is not NDJSON of that type.", _KEPT_ADVICE
            )
        if not counts_differ:
            return
        former = self._digests.get(self._position.source)
        self._digests[self._position.source] = digest
        if former != digest:
            self._part.restart()
            raise _OtherCount(f"{came}.", _KEPT_ADVICE)
        # Twice the same bytes: the count is wrong (some servers say 0), nothing is lost.
        if expected is not None and digest.lines > expected:
            name = self._part.path.name
            _log.warning("%s has %d lines, more than the %d of the manifest; kept.", name, digest.lines, expected)
            return
        if not self._takes_any_count:  # the site may have corrected the manifest
            self._part.restart()
            raise _SureCount
        _log.warning("%s, more than once and with the same bytes: it is taken.", came)


_KEPT_ADVICE = "The file is fetched again by the next run; the export stays on the server."


def _lists(manifest: Manifest) -> Iterator[tuple[Category, tuple[ManifestFile, ...]]]:
    yield "files", manifest.output
    yield "outcomes", manifest.outcomes
    yield "deleted", manifest.deleted


def _positions(manifest: Manifest) -> list[_Position]:
    """Files numbered from 1 through output, outcomes and deleted, in the manifest's order."""
    sources = _sources(manifest)
    positions: list[_Position] = []
    for category, entries in _lists(manifest):
        for entry in entries:
            positions.append(_Position(category, len(positions) + 1, entry, sources[entry.url]))
    return positions


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
        by_source = {(new_sources[entry.url], entry.resource_type): entry for entry in now}
        old = [(old_sources[entry.url], entry.resource_type) for entry in before]
        known_sources = set(old)
        others = iter([e for e in now if (new_sources[e.url], e.resource_type) not in known_sources])
        kept = [by_source.get(source) or next(others, None) for source in old]
        return (*(entry for entry in kept if entry is not None), *others)

    return replace(
        new,
        output=ordered(known.output, new.output),
        outcomes=ordered(known.outcomes, new.outcomes),
        deleted=ordered(known.deleted, new.deleted),
    )


def _of_category(found: Mapping[_Position, LandedFile], category: Category) -> tuple[LandedFile, ...]:
    files = [file for position, file in found.items() if position.category == category]
    return tuple(sorted(files, key=lambda file: file.number))
