"""Bulk Data Access, one HTTP exchange a function: kick-off, status, file, delete. Keeps nothing.

Specification: https://hl7.org/fhir/uv/bulkdata/ (STU2, STU3 and the STU4 draft are read). What happens between the
exchanges — waiting, saving, resuming — is `pipeline/extract/bulk/`'s.
"""

from __future__ import annotations

import logging
import re
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, TypeVar

import httpx

from pipeline.core.errors import (
    AcceptedWithoutAddress,
    CooldownActive,
    ExportGone,
    KickOffUnknown,
    ProtocolError,
    RemoteRefused,
    RemoteUnavailable,
    Unreachable,
    UnreadableStatus,
    UnsafeRemote,
)
from pipeline.core.resource_types import TYPE_NAME
from pipeline.extract.http.redaction import progress_words
from pipeline.extract.http.transport import RemoteRequest, Response, StreamedResponse, shown_url
from pipeline.extract.smart.session import EpicSession
from pipeline.fhir.operation_outcome import OPERATION_OUTCOME

__all__ = [
    "KickOff",
    "Manifest",
    "ManifestFile",
    "Receiver",
    "StillRunning",
    "ask_for_token",
    "delete_job",
    "download",
    "is_usable_url",
    "kick_off",
    "parse_manifest",
    "poll",
]

_Received_co = TypeVar("_Received_co", covariant=True)

_log = logging.getLogger(__name__)

_FHIR_JSON = "application/fhir+json"
_FHIR_NDJSON = "application/fhir+ndjson"

#: Limits of the security list: what is larger is an attack or an error, not an export.
MAX_MANIFEST_BYTES = 64 << 20
MAX_MANIFEST_PAGES = 10_000
MAX_FILES = 200_000
#: An entry has a handful of them, with its extensions.
MAX_MANIFEST_VALUES = 16 * MAX_FILES
MAX_FILE_BYTES = 64 << 30

#: Of downloads, and of the kick-off, which Epic answers only after it has looked at the group.
_IDLE_SECONDS = 300.0

_TOO_RECENTLY = "too recently"


@dataclass(frozen=True)
class KickOff:
    """An accepted export; its address is not checked yet, so that it can be saved before anything else."""

    status_url: str


@dataclass(frozen=True)
class StillRunning:
    """The server's Retry-After in seconds, not clamped, and X-Progress."""

    retry_after_seconds: float | None
    progress: str | None


@dataclass(frozen=True)
class ManifestFile:
    """One file of a manifest; `count` is the number of resources where the server states it. `url` is empty where the
    manifest names no address that can be used: the file cannot be had."""

    resource_type: str
    url: str
    count: int | None = None


@dataclass(frozen=True)
class Manifest:
    """A complete export: all pages of its manifest in one."""

    #: As the site says it; None where that cannot be read.
    transaction_time: datetime | None
    requires_access_token: bool
    output: tuple[ManifestFile, ...]
    #: `error` of STU2 and STU3, `outcome` of STU4.
    outcomes: tuple[ManifestFile, ...] = ()
    deleted: tuple[ManifestFile, ...] = ()
    pages: int = field(default=1, compare=False)

    def to_json(self) -> dict[str, Any]:
        """As `etl.export_job.manifest` keeps it; `parse_manifest` reads it again."""
        return {
            "transactionTime": self.transaction_time.isoformat() if self.transaction_time else None,
            "requiresAccessToken": self.requires_access_token,
            "output": [_file_to_json(file) for file in self.output],
            "error": [_file_to_json(file) for file in self.outcomes],
            "deleted": [_file_to_json(file) for file in self.deleted],
            "pages": self.pages,
        }


def ask_for_token(session: EpicSession) -> None:
    """Before a kick-off, with patience: what fails until here is known to have started nothing."""
    session.transport.retrying(lambda: session.tokens.current(session.transport))


def kick_off(session: EpicSession, group: str, resource_types: Sequence[str], since: datetime | None = None) -> KickOff:
    """Start the export of a group. Sent once, never repeated (rule 2); `_type` always goes with it (rule 5).

    `since` asks for what changed from then on (`_since`); many servers ignore it and send everything.

    Raises CooldownActive when Epic says that this group was exported too recently; KickOffUnknown when the
    connection failed or a gateway answered after the request was sent; AcceptedWithoutAddress when the accepted
    export cannot be reached; RemoteRefused, AuthenticationRefused or RemoteUnavailable when no export was started.
    """
    ask_for_token(session)
    answer = _send_kick_off(session, _kick_off_request(session, group, resource_types, since))
    if answer.status == 202:
        location = answer.headers.get("content-location")
        if not location or not is_usable_url(location):
            message = f"{answer.request.action}: accepted, but without an address to ask for its status."
            raise AcceptedWithoutAddress(message, "Report it to the site: Content-Location is missing or no address.")
        return KickOff(urllib.parse.urljoin(answer.url, location))
    if _is_too_recent(answer):
        next_try = session.transport.clock.now() + timedelta(hours=session.site.kickoff_window_hours)
        raise CooldownActive(
            f"Epic refuses an export of group {group} of site {session.site.name}: it was requested too recently.",
            f"The next try makes sense at {next_try:%Y-%m-%d %H:%M} UTC.",
            next_try=next_try,
        )
    if answer.status < 300:
        raise ProtocolError(f"{answer.request.action}: the server answered {answer.status} instead of 202.")
    if answer.status in (408, 500, 502, 504):  # who answered may not know what the server behind it did
        raise KickOffUnknown(answer.error().message, _UNKNOWN_ADVICE, status=answer.status)
    raise answer.error()


_UNKNOWN_ADVICE = "An export may have been started: no new kick-off until the window of this group has passed."


def _kick_off_request(
    session: EpicSession, group: str, resource_types: Sequence[str], since: datetime | None
) -> RemoteRequest:
    base = session.site.fhir_url or ""
    parameters = {"_type": ",".join(resource_types)}
    if since is not None:
        parameters["_since"] = since.astimezone(UTC).isoformat(timespec="seconds")
    query = urllib.parse.urlencode(parameters, safe=",")
    return RemoteRequest(
        f"The kick-off for group {group} of site {session.site.name}",
        f"{base}/Group/{urllib.parse.quote(group, safe='')}/$export?{query}",
        headers={"Accept": _FHIR_JSON, "Prefer": "respond-async"},
        tokens=session.tokens,
        read_seconds=_IDLE_SECONDS,
        advice={404: "Check the group's id in sites.yaml with the site's administrators, and fhir_url."},
        event="kick-off",
    )


def _send_kick_off(session: EpicSession, request: RemoteRequest) -> Response:
    try:
        return session.transport.send(request)
    except Unreachable:
        raise
    except RemoteUnavailable as error:
        raise KickOffUnknown(error.message, _UNKNOWN_ADVICE) from error


def _is_too_recent(answer: Response) -> bool:
    """Rule 2: only the text is certain, not the status, nor that it comes as an OperationOutcome."""
    if answer.status < 300:
        return False
    texts = [text for issue in answer.issues for text in issue.texts]
    reason = " ".join(texts) or answer.body[:4096].decode(errors="replace")
    return _TOO_RECENTLY in " ".join(reason.lower().split())


def poll(
    session: EpicSession, status_url: str, *, session_for_pages: EpicSession | None = None
) -> StillRunning | Manifest:
    """Ask once for the status of an export; a finished one gives its whole manifest, all pages.

    `session` may be one for a short call; further pages, of which there may be many, are then read with patience
    in `session_for_pages`.

    Raises ExportGone when the server does not know the job, RemoteUnavailable when asking again makes sense
    (UnreadableStatus: for what is not a manifest), RemoteRefused when the export failed, ProtocolError and UnsafeRemote
    for a manifest that cannot be used.
    """
    request = _status_request(session, status_url)
    answer = _with_status_of_export(session.transport.send(request))
    if answer.status == 202:
        return StillRunning(answer.retry_after, progress_words(answer.headers.get("x-progress")) or None)
    if answer.status in (404, 410) and not answer.is_transient:
        raise ExportGone(
            f"{request.action}: the server no longer knows this export.",
            "Results are kept for 14 days; the next run after this group's window starts a new export.",
        )
    if answer.status != 200:
        raise answer.error()
    return _all_pages(session_for_pages or session, answer)


def _page_of(answer: Response) -> Manifest:
    """What a gateway or a half answer gives is not a manifest: it says nothing of the export, which may have run for
    days. Only a JSON object with a list of files, however short, is one."""
    try:
        document = answer.json()
    except ProtocolError:
        document = {}
    if (document.get("resourceType") or "Parameters") != "Parameters" or document.get("output") is None:
        raise UnreadableStatus(f"{answer.request.action}: the server answered with something that is not a manifest.")
    return parse_manifest(document)


def _with_status_of_export(answer: Response) -> Response:
    """With `separate-export-status` (STU3 and later) 200 speaks of the question, and a header of the export."""
    status_of_export = answer.headers.get("x-export-status", "").strip()[:3]
    return (
        replace(answer, status=int(status_of_export))
        if answer.status == 200 and status_of_export.isdecimal()
        else answer
    )


def _status_request(session: EpicSession, url: str) -> RemoteRequest:
    return RemoteRequest(
        f"The status of an export of site {session.site.name}",
        url,
        headers={"Accept": f"{_FHIR_JSON}, application/json"},
        tokens=session.tokens,
        max_bytes=MAX_MANIFEST_BYTES,
        max_values=MAX_MANIFEST_VALUES,
        event="status",
    )


def _all_pages(session: EpicSession, first: Response) -> Manifest:
    """Follow STU3's `link` relation next; a page that comes twice is a loop, not an export."""
    manifest = _page_of(first)
    next_url = _next_page(first)
    seen, size = {first.url}, len(first.body)
    while next_url:
        if next_url in seen or len(seen) >= MAX_MANIFEST_PAGES:
            raise ProtocolError("The manifest's pages lead in a circle.", "Report it to the site: nothing was loaded.")
        seen.add(next_url)
        answer = session.transport.fetch(_status_request(session, next_url))
        size += len(answer.body)
        if size > MAX_MANIFEST_BYTES:
            raise UnsafeRemote(f"The manifest's pages are longer than {MAX_MANIFEST_BYTES:,} bytes together.")
        manifest = _joined(manifest, _page_of(answer))
        next_url = _next_page(answer)
    if manifest.output and not any(file.url for file in manifest.output):
        raise ProtocolError(
            "The manifest names no address that can be used.", "Report it to the site: nothing was loaded."
        )
    return manifest


def _next_page(answer: Response) -> str | None:
    links = answer.json().get("link")
    for link in links if isinstance(links, list) else ():
        url = link.get("url") if isinstance(link, dict) and link.get("relation") == "next" else None
        if isinstance(url, str):
            _refuse_unusable(url)
            return urllib.parse.urljoin(answer.url, url)
    return None


def _joined(manifest: Manifest, page: Manifest) -> Manifest:
    if page.transaction_time != manifest.transaction_time:
        raise ProtocolError("The pages of the manifest have different times: they are not of one export.")
    joined = Manifest(
        manifest.transaction_time,
        manifest.requires_access_token or page.requires_access_token,
        manifest.output + page.output,
        manifest.outcomes + page.outcomes,
        manifest.deleted + page.deleted,
        manifest.pages + 1,
    )
    _refuse_too_many(joined)
    return joined


def parse_manifest(document: dict[str, Any]) -> Manifest:
    """Read one page of a manifest, in the shape of STU2, STU3 or the STU4 draft. Raises ProtocolError, UnsafeRemote.

    A transactionTime that cannot be read is None: the files are no worse for it.

    `extension` (an object or, in STU4, an array) is not needed and not read; the same holds for `request`.
    """
    requires_token = document.get("requiresAccessToken", True)
    manifest = Manifest(
        _instant(document.get("transactionTime")),
        # Only a plain `false` frees a file from the token.
        requires_token is not False,
        _files(document, "output"),
        _files(document, "error") + _files(document, "outcome"),
        _files(document, "deleted"),
        pages=document.get("pages", 1) if isinstance(document.get("pages", 1), int) else 1,
    )
    _refuse_too_many(manifest)
    return manifest


def _refuse_too_many(manifest: Manifest) -> None:
    if len(manifest.output) + len(manifest.outcomes) + len(manifest.deleted) > MAX_FILES:
        raise UnsafeRemote(f"The manifest lists more than {MAX_FILES} files.")


def _instant(value: object) -> datetime | None:
    """None for what is not a valid instant in UTC: 9999-12-31T23:59:59-12:00 is none either."""
    try:
        instant = datetime.fromisoformat(value) if isinstance(value, str) else None
        return instant and (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def is_usable_url(text: str) -> bool:
    """Whether an address, absolute or relative, can be asked for at all, and kept: well formed, without a control
    character, and without a user's name and password, which no request carries."""
    if not text.strip() or not text.isprintable():
        return False
    try:
        parts = urllib.parse.urlsplit(text)
        httpx.URL(text)
        return (
            parts.scheme in ("", "http", "https") and (parts.port is None or parts.port > 0) and "@" not in parts.netloc
        )
    except (ValueError, httpx.InvalidURL):
        return False


def _refuse_unusable(url: str) -> None:
    if re.match(r"(?!https?:)[a-z][a-z0-9+.-]*:", url, re.IGNORECASE):
        message = "An address in `link` of the manifest is of a kind that is not allow-listed."
        raise UnsafeRemote(message, "Report it to the site: nothing was loaded.")
    if not is_usable_url(url):
        message = "An address in `link` of the manifest cannot be used."
        raise ProtocolError(message, "Report it to the site: nothing was loaded.")


def _files(document: dict[str, Any], name: str) -> tuple[ManifestFile, ...]:
    """The files of one of the manifest's lists. Of `output` the export consists; the others may have any shape: one file
    alone is a list of one, and what is not a list of files is one that cannot be had."""
    entries = document.get(name) or []
    if isinstance(document.get(name), list):
        return tuple(_file(entry, name) for entry in entries)
    if name == "output" and document.get(name) is not None:
        raise ProtocolError(f"`{name}` of the manifest is not a list.")
    return (_file(entries, name),) if entries else ()


#: What a list holds where it does not say so.
_DEFAULT_TYPES = {"error": OPERATION_OUTCOME, "outcome": OPERATION_OUTCOME, "deleted": "Bundle"}


def _file(entry: object, name: str) -> ManifestFile:
    """A type becomes part of a file name, so anything but a plain name is refused."""
    values = entry if isinstance(entry, dict) else {}
    resource_type = values.get("type", _DEFAULT_TYPES.get(name))
    if not isinstance(resource_type, str) or not TYPE_NAME.fullmatch(resource_type):
        if name not in _DEFAULT_TYPES:
            message = f"An entry of the manifest's `{name}` has a type that is not a resource type."
            raise UnsafeRemote(message, "Report it to the site: nothing was loaded.")
        resource_type = _DEFAULT_TYPES[name]
    url, count = values.get("url"), values.get("count")
    known = isinstance(count, int) and not isinstance(count, bool) and 0 <= count < 2**63
    usable = isinstance(url, str) and is_usable_url(url)
    return ManifestFile(resource_type, url if isinstance(url, str) and usable else "", count if known else None)


def _file_to_json(file: ManifestFile) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": file.resource_type, "url": file.url}
    return entry if file.count is None else {**entry, "count": file.count}


class Receiver(Protocol[_Received_co]):
    """Takes one file, over as many attempts as it needs."""

    def headers(self) -> Mapping[str, str]:
        """Of the next attempt: a Range, where something is there already."""
        ...

    def __call__(self, answer: StreamedResponse) -> _Received_co:
        """Take an answer; RemoteUnavailable asks for another attempt."""
        ...


def download(
    session: EpicSession,
    file: ManifestFile,
    receive: Receiver[_Received_co],
    *,
    status_url: str,
    requires_access_token: bool,
) -> _Received_co:
    """Stream one file, decompressed, to `receive`, which is asked for headers and called anew for each attempt.

    A relative address is resolved against the status address. Raises ExportGone for 404 and 410, UnsafeRemote for
    another host, RemoteUnavailable after the last attempt.
    """
    url = urllib.parse.urljoin(status_url, file.url)
    action = f"The download of {shown_url(url)}"

    def request() -> RemoteRequest:
        return RemoteRequest(
            action,
            url,
            headers={"Accept": _FHIR_NDJSON, **receive.headers()},
            tokens=session.tokens if requires_access_token else None,
            read_seconds=_IDLE_SECONDS,
            event="file",
            resource_type=file.resource_type,
        )

    try:
        return session.transport.stream_from(request, lambda answer: receive(_limited(answer)))
    except RemoteRefused as error:
        if error.status in (404, 410):
            raise ExportGone(
                f"{action}: the file is not there any more.",
                "The next run after this group's window starts a new export.",
            ) from error
        raise


def _limited(answer: StreamedResponse) -> StreamedResponse:
    def chunks() -> Iterator[bytes]:
        total = 0
        for chunk in answer.chunks:
            total += len(chunk)
            if total > MAX_FILE_BYTES:
                raise UnsafeRemote(f"{answer.request.action}: the file is longer than {MAX_FILE_BYTES >> 30} GiB.")
            yield chunk

    return replace(answer, chunks=chunks())


def delete_job(session: EpicSession, status_url: str) -> None:
    """Report to the server that its files may go (rule 3). A job that is gone already is as good as deleted."""
    request = RemoteRequest(
        f"Deleting an export of site {session.site.name} on the server",
        status_url,
        method="DELETE",
        headers={"Accept": _FHIR_JSON},
        tokens=session.tokens,
        event="delete",
    )
    try:
        session.transport.fetch(request)
    except RemoteRefused as error:
        if error.status not in (404, 410):
            raise
        _log.info("The export was gone on the server already.")
