"""Going on with a file: which answers continue what we hold, and which are of another file."""

from __future__ import annotations

from collections.abc import Mapping

import httpx
import pytest

from pipeline.core.errors import RemoteUnavailable
from pipeline.extract.http.ranges import OtherContent, ResumePoint, continuation, range_headers, validator_of
from pipeline.extract.http.transport import RemoteRequest, StreamedResponse

HELD = b"0123456789"
POINT = ResumePoint(6, b"6789", '"v1"')
FITS = {"content-range": "bytes 6-14/15", "etag": '"v1"'}


def answer(chunks: tuple[bytes, ...], headers: Mapping[str, str] = FITS, status: int = 206) -> StreamedResponse:
    return StreamedResponse(RemoteRequest("The download", "http://h/1"), status, httpx.Headers(headers), iter(chunks))


@pytest.mark.parametrize(
    "chunks", [(b"6789abcde",), (b"6", b"7", b"89abcd", b"e"), (b"6789", b"abcde"), (b"67", b"89ab", b"cde")]
)
def test_the_overlap_is_compared_and_left_out(chunks: tuple[bytes, ...]) -> None:
    assert b"".join(continuation(POINT, answer(chunks))) == b"abcde"


@pytest.mark.parametrize(
    ("chunks", "headers", "status"),
    [
        ((b"6788abcde",), FITS, 206),
        ((b"67",), FITS, 206),
        ((b"6789abcde",), {**FITS, "content-range": "bytes 0-14/15"}, 206),
        ((b"6789abcde",), {**FITS, "content-range": "lines 1-2"}, 206),
        ((b"6789abcde",), {"etag": '"v1"'}, 206),
        ((b"6789abcde",), {**FITS, "etag": '"v2"'}, 206),
        ((b"6789abcde",), {**FITS, "content-encoding": "gzip"}, 206),
        ((), {"content-range": "bytes */5"}, 416),
    ],
)
def test_another_file_is_seen(chunks: tuple[bytes, ...], headers: dict[str, str], status: int) -> None:
    with pytest.raises(OtherContent):
        list(continuation(POINT, answer(chunks, headers, status)))


def test_an_answer_that_ends_early_is_no_end() -> None:
    with pytest.raises(RemoteUnavailable, match="before the end"):
        list(continuation(POINT, answer((b"6789ab",))))
    unknown = {"content-range": "bytes 6-14/*"}
    assert b"".join(continuation(POINT, answer((b"6789ab",), unknown))) == b"ab"


def test_what_is_asked_for() -> None:
    assert range_headers(None) == {}
    asked = {"Range": "bytes=6-", "Accept-Encoding": "identity"}
    assert range_headers(POINT) == {**asked, "If-Range": '"v1"'}
    assert range_headers(ResumePoint(6, b"6789", None)) == asked


@pytest.mark.parametrize(
    ("headers", "validator"),
    [
        ({"ETag": '"a"'}, '"a"'),
        ({"ETag": 'W/"a"', "Last-Modified": "Sun, 01 Mar 2026 12:00:00 GMT"}, None),
        ({"Last-Modified": "Sun, 01 Mar 2026 12:00:00 GMT"}, "Sun, 01 Mar 2026 12:00:00 GMT"),
        ({"ETag": '"a"', "Content-Encoding": "gzip"}, None),
        ({}, None),
    ],
)
def test_what_names_a_version(headers: dict[str, str], validator: str | None) -> None:
    assert validator_of(httpx.Headers(headers)) == validator
