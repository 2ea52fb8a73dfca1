"""Resuming a file by HTTP Range (RFC 9110, section 14): what to ask for, and whether the answer fits what we hold.

The server's word that nothing has changed (If-Range) is used where there is one, and never relied on: the last bytes
that we hold are asked for again and compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import httpx

from pipeline.core.errors import RemoteUnavailable
from pipeline.extract.http.transport import StreamedResponse

__all__ = ["OVERLAP_BYTES", "OtherContent", "ResumePoint", "continuation", "range_headers", "validator_of"]

#: So many bytes that we hold are fetched again to be compared: a line or two of NDJSON, with their ids.
OVERLAP_BYTES = 4096

_CONTENT_RANGE = re.compile(r"bytes (?P<start>\d{1,18})-\d{1,18}/(?P<total>\d{1,18}|\*)")


class OtherContent(Exception):
    """The server's file is not the one that we hold the beginning of."""


@dataclass(frozen=True)
class ResumePoint:
    """`offset` is the first byte to ask for; `overlap` what we hold from there on, to its end."""

    offset: int
    overlap: bytes
    validator: str | None


def range_headers(point: ResumePoint | None) -> Mapping[str, str]:
    """Of the next request. A range counts bytes of the encoded body, so no encoding is accepted with it."""
    if point is None:
        return {}
    headers = {"Range": f"bytes={point.offset}-", "Accept-Encoding": "identity"}
    return {**headers, "If-Range": point.validator} if point.validator else headers


def validator_of(headers: httpx.Headers) -> str | None:
    """What names the version of an answer in If-Range: a strong ETag, else Last-Modified.

    None for an encoded body: its version is that of the encoded bytes, and we keep the decoded ones.
    """
    if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        return None
    tag = headers.get("etag", "").strip()
    if tag:
        return tag if tag.startswith('"') else None
    return headers.get("last-modified") or None


def continuation(point: ResumePoint, answer: StreamedResponse) -> Iterator[bytes]:
    """The bytes that follow what we hold. Raises OtherContent where the answer (206 or 416) does not fit it."""
    total = _check_total(point, answer)
    received = 0
    expected = point.overlap
    for chunk in answer.chunks:
        received += len(chunk)
        common = min(len(chunk), len(expected))
        if chunk[:common] != expected[:common]:
            raise OtherContent
        expected = expected[common:]
        if len(chunk) > common:
            yield chunk[common:]
    if expected:
        raise OtherContent
    if total is not None and point.offset + received != total:
        raise RemoteUnavailable(f"{answer.request.action}: the answer ended before the end of the file.")


def _check_total(point: ResumePoint, answer: StreamedResponse) -> int | None:
    """Length of the whole file, where the server says it."""
    match = _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", "").strip())
    encoding = answer.headers.get("content-encoding", "identity").strip().lower()
    if answer.status != 206 or match is None or int(match["start"]) != point.offset or encoding not in ("", "identity"):
        raise OtherContent
    tag = answer.headers.get("etag")
    if point.validator and point.validator.startswith('"') and tag is not None and tag.strip() != point.validator:
        raise OtherContent
    return None if match["total"] == "*" else int(match["total"])
