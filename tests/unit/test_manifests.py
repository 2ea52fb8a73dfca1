"""Manifests of bulk exports: what of any shape is read, becomes a file that cannot be had, or ends the export."""

from __future__ import annotations

from typing import Any

import httpx
import orjson
import pytest

from pipeline.clock import SystemClock
from pipeline.epic.bulk_export import Manifest, ManifestFile, parse_manifest
from pipeline.epic.transport import Transport
from pipeline.errors import AddressNotListed, ProtocolError, UnsafeRemote, UnusableAddress
from pipeline.settings import SiteSettings

FILE = {"type": "Patient", "url": "https://epic.example.org/1"}
UNUSABLE_URLS = (
    *(
        "http://h/\0",
        "/a\nb",
        "http://[",
        "",
        " ",
        17,
        None,
        [],
        {},
        "file:///etc/passwd",
        "gopher://h/1",
        "https://h:0/1",
    ),
    *("http://user:password@127.0.0.1/1", "javascript:alert(1)", "https://h:99999/", "\ud800"),
)
#: Of a list that is none: the files that become of it.
NONE_AT_ALL = (None, "", {}, [], False, 0)
ONE_THAT_CANNOT_BE_HAD = ("none", 7, True, 1.5, ["none"], [None], [[]], [{"type": "../x", "url": "\0"}], {"a": 1})


def manifest(**values: Any) -> Manifest:
    found = parse_manifest({"transactionTime": "2026-01-01T00:00:00Z", "output": [FILE], **values})
    assert parse_manifest(found.to_json()) == found, "it is saved and read again"
    assert b"\\u0000" not in orjson.dumps(found.to_json()), "PostgreSQL keeps no NUL"
    return found


@pytest.mark.parametrize("url", UNUSABLE_URLS)
def test_an_address_that_cannot_be_used_is_one_files_matter(url: object) -> None:
    found = manifest(output=[{"type": "Patient", "url": url, "count": 3}, FILE])
    assert found.output == (ManifestFile("Patient", "", 3), ManifestFile("Patient", FILE["url"]))


@pytest.mark.parametrize(
    ("name", "kind"), [("error", "OperationOutcome"), ("outcome", "OperationOutcome"), ("deleted", "Bundle")]
)
def test_lists_beside_the_output_may_have_any_shape(name: str, kind: str) -> None:
    for value in NONE_AT_ALL:
        found = manifest(**{name: value})
        assert (found.outcomes, found.deleted) == ((), ()), value
    for value in ONE_THAT_CANNOT_BE_HAD:
        found = manifest(**{name: value})
        assert (*found.outcomes, *found.deleted) == (ManifestFile(kind, ""),), value
    found = manifest(**{name: {"url": "/1", "count": "x"}})
    assert (*found.outcomes, *found.deleted) == (ManifestFile(kind, "/1"),), "one alone is a list of one"


@pytest.mark.parametrize("name", ["extension", "request", "pages", "requiresAccessToken", "link", "anything"])
def test_other_members_may_have_any_shape(name: str) -> None:
    for value in (None, 7, "none", {"a": 1}, ["none"], True, 1e300):
        assert manifest(**{name: value}).output == (ManifestFile("Patient", FILE["url"]),)


@pytest.mark.parametrize(
    "output", [{"a": 1}, {}, False, 0, "", "x", [None], [{}], [{"url": "/1"}], [{"type": "../x", "url": "/1"}]]
)
def test_an_output_that_cannot_be_meant_ends_the_export(output: object) -> None:
    with pytest.raises((ProtocolError, UnsafeRemote)):
        manifest(output=output)


ADDRESSES: dict[str, type[Exception]] = {
    **dict.fromkeys(
        (
            *("https://10.1.2.3/1", "https://localhost/1", "https://[::1]/1", "https://[::ffff:169.254.169.254]/1"),
            *("http://epic.example.org/1", "http://files.example.org/1", "ftp://epic.example.org/1", "https://"),
            *("https://0/1", "https://2130706433/1", "https://0x7f.1/1", "https://169.254.169.254/latest"),
        ),
        UnusableAddress,
    ),
    "https://files.example.org/1": AddressNotListed,
    "https://epic.example.org:8443/1": AddressNotListed,
}


@pytest.mark.parametrize("url", ADDRESSES)
def test_which_addresses_can_never_be_used(url: str) -> None:
    values = {"fhir_url": "https://epic.example.org/fhir", "client_id": "c", "private_key_env": "K", "groups": ("g",)}
    site = SiteSettings.model_validate({"name": "north", **values})
    with Transport(site, SystemClock()) as transport, pytest.raises(ADDRESSES[url]) as refused:
        transport.check_address("The download", url)
    assert type(refused.value) is ADDRESSES[url]
    assert httpx.URL(url).host == "" or refused.value.advice
