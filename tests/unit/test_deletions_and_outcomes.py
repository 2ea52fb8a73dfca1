"""Files of deleted resources and of the site's messages: what is read in them, and what of broken ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from pipeline.landing.deletions import read_deletions
from pipeline.landing.files import file_digest
from pipeline.landing.outcomes import SiteMessage, site_messages
from pipeline.landing.reading import open_landed
from pipeline.landing.store import LandedFile

Landed = Callable[[bytes], LandedFile]


@pytest.fixture
def landed(tmp_path: Path) -> Landed:
    def write(content: bytes) -> LandedFile:
        path = tmp_path / "file.ndjson"
        path.write_bytes(content)
        digest = file_digest(path)
        return LandedFile(1, "Bundle", path, digest.bytes, digest.lines, digest.sha256)

    return write


def bundle(*requests: Any) -> bytes:
    return orjson.dumps({"resourceType": "Bundle", "type": "transaction", "entry": [{"request": r} for r in requests]})


def delete(url: Any) -> dict[str, Any]:
    return {"method": "DELETE", "url": url}


def test_entries_are_numbered_through_all_bundles(landed: Landed) -> None:
    first, second = bundle(delete("Patient/a"), delete("https://h/fhir/Observation/b.1-C")), bundle(delete("Goal/c"))
    file = landed(b"\xef\xbb\xbf" + first + b"\r\n \n" + second)
    found = list(read_deletions(file.path))
    assert [(one.number, one.resource_type, one.resource_id) for one in found] == [
        (1, "Patient", "a"),
        (2, "Observation", "b.1-C"),
        (3, "Goal", "c"),
    ]
    assert found[2].byte_length == len(second)
    assert open_landed(file.path).read()[found[2].byte_offset :] == second


@pytest.mark.parametrize(
    "line",
    [
        b"{broken",
        b"[]",
        b'{"resourceType":"Patient","id":"x"}',
        b'{"resourceType":"Bundle","entry":{}}',
        bundle({"method": "PUT", "url": "Patient/a"}),
        bundle(delete("Patient?identifier=1")),
        bundle(delete(7)),
        bundle("DELETE"),
        bundle(delete("patient")),
    ],
)
def test_what_cannot_be_read_is_counted(landed: Landed, line: bytes) -> None:
    (found,) = read_deletions(landed(line + b"\n").path)
    assert (found.number, found.resource_type, found.resource_id) == (1, None, None)


def test_a_bundle_without_entries_deletes_nothing(landed: Landed) -> None:
    assert list(read_deletions(landed(b'{"resourceType":"Bundle"}\n\n').path)) == []


def issue(severity: Any, code: Any, site_code: Any = None) -> dict[str, Any]:
    details = {"details": {"coding": [{"code": site_code}]}} if site_code else {}
    return {"severity": severity, "code": code, "diagnostics": "Patient Quillfeather is missing", **details}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (issue("information", "informational"), SiteMessage("informational", "information", "informational", "")),
        (issue("success", "success"), SiteMessage("informational", "success", "success", "")),
        (issue("warning", "processing", "4101"), SiteMessage("informational", "warning", "processing", "4101")),
        (issue("error", "not-found", "4101"), SiteMessage("informational", "error", "not-found", "4101")),
        (issue("warning", "forbidden"), SiteMessage("resource", "warning", "forbidden", "")),
        (issue("error", "required", "59108"), SiteMessage("resource", "error", "required", "59108")),
        (issue("error", "forbidden"), SiteMessage("fatal", "error", "forbidden", "")),
        (issue("error", "throttled", "4130"), SiteMessage("fatal", "error", "throttled", "4130")),
        (issue("fatal", "invalid"), SiteMessage("fatal", "fatal", "invalid", "")),
        (issue(None, "Quillfeather 1950"), SiteMessage("resource", "other", "other", "")),
        (issue("error", "invalid", "Quillfeather"), SiteMessage("resource", "error", "invalid", "")),
        ("no issue", SiteMessage("resource", "other", "other", "")),
    ],
)
def test_messages_are_weighed_and_only_codes_are_kept(landed: Landed, given: Any, message: SiteMessage) -> None:
    line = orjson.dumps({"resourceType": "OperationOutcome", "issue": [given, given]})
    assert site_messages([landed(line)]) == {message: 2}


@pytest.mark.parametrize("line", [b"{broken", b"[]", b"{}", b'{"issue":[]}'])
def test_messages_that_cannot_be_read_are_counted(landed: Landed, line: bytes) -> None:
    assert site_messages([landed(line + b"\n\n")]) == {SiteMessage("resource", "error", "unreadable", ""): 1}
