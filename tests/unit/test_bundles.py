"""Bundles and JSON files when they land: one line an entry, numbers as written, nothing dropped."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import UsageError
from pipeline.landing.bundles import unpack
from pipeline.landing.folder import land_folder
from pipeline.landing.reading import open_landed
from pipeline.landing.store import LandedExport, LandingStore

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def bundle(kind: str | None, *entries: Any, **more: Any) -> dict[str, Any]:
    return {"resourceType": "Bundle", "type": kind, "entry": list(entries), **more}


def patient(name: str, **more: Any) -> dict[str, Any]:
    return {"resourceType": "Patient", "id": name, **more}


def lines(document: Any) -> list[tuple[str, Any]]:
    return [(kind, orjson.loads(line)) for kind, line in unpack(orjson.dumps(document))]


@pytest.mark.parametrize(
    "kind",
    ["document", "collection", "message", "searchset", "batch-response", "transaction-response"],
)
def test_resources_of_a_bundle_are_lines(kind: str) -> None:
    found = lines(bundle(kind, {"resource": patient("p1")}, {"resource": {"resourceType": "Basic", "id": "b"}}))
    assert found == [("Patient", patient("p1")), ("Basic", {"resourceType": "Basic", "id": "b"})]


@pytest.mark.parametrize("kind", ["transaction", "batch"])
def test_what_is_written_by_a_transaction_is_a_line_and_other_methods_are_kept_apart(kind: str) -> None:
    entries = [
        {"resource": patient("p1"), "request": {"method": "POST", "url": "Patient"}},
        {"resource": patient("p2"), "request": {"method": "PUT", "url": "Patient/p2"}},
        {"resource": {"resourceType": "Parameters"}, "request": {"method": "PATCH", "url": "Patient/p3"}},
        {"request": {"method": "DELETE", "url": "Patient/p4"}},
    ]
    found = lines(bundle(kind, *entries))
    assert [name for name, _ in found] == ["Patient", "Patient", "Bundle", "Bundle"]
    assert [line["entry"] for name, line in found if name == "Bundle"] == [[entries[2]], [entries[3]]]


def test_a_history_is_reversed_and_versions_before_a_deletion_are_kept_apart() -> None:
    newest = {"resource": patient("p1", active=False), "request": {"method": "PUT", "url": "Patient/p1"}}
    oldest = {"resource": patient("p1", active=True), "request": {"method": "POST", "url": "Patient"}}
    deletion = {"request": {"method": "DELETE", "url": "Patient/p2"}}
    deleted = {"resource": patient("p2"), "request": {"method": "POST", "url": "Patient"}}
    found = lines(bundle("history", newest, oldest, deletion, deleted))
    assert [name for name, _ in found] == ["Bundle", "Bundle", "Patient", "Patient"]
    assert [line.get("active") for name, line in found if name == "Patient"] == [True, False]
    assert found[0][1]["entry"][0]["beforeDeletion"] is True


def test_full_urls_become_type_and_id() -> None:
    visit = {
        "resourceType": "Encounter",
        "id": "e1",
        "subject": {"reference": "urn:uuid:0c3151bd"},
        "participant": [{"individual": {"reference": "https://example.org/who"}}],
        "serviceProvider": {"reference": "Organization/o1"},
        "text": {"div": "urn:uuid:0c3151bd"},
    }
    found = lines(
        bundle(
            "collection",
            {"fullUrl": "urn:uuid:0c3151bd", "resource": {"resourceType": "Patient"}},
            {"fullUrl": "https://example.org/who", "resource": {"resourceType": "Practitioner", "id": "d1"}},
            {"fullUrl": "https://example.org/Encounter/e1", "resource": visit},
        )
    )
    assert found[0] == ("Patient", patient("0c3151bd"))
    assert found[2][1]["subject"] == {"reference": "Patient/0c3151bd"}
    assert found[2][1]["participant"] == [{"individual": {"reference": "Practitioner/d1"}}]
    assert found[2][1]["serviceProvider"] == {"reference": "Organization/o1"}
    assert found[2][1]["text"] == {"div": "urn:uuid:0c3151bd"}


def test_bundles_within_bundles() -> None:
    inner = bundle("searchset", {"resource": patient("p1")})
    assert lines(bundle("batch-response", {"resource": inner})) == [("Patient", patient("p1"))]


@pytest.mark.parametrize(
    "document",
    [bundle(None, {"resource": patient("p1")}), bundle("parcel", {"resource": patient("p1")}), bundle("collection")],
)
def test_a_bundle_that_cannot_be_unpacked_stays_whole_and_gets_an_id(document: dict[str, Any]) -> None:
    ((name, line),) = lines(document)
    assert name == "Bundle"
    assert line == {**document, "id": line["id"]}
    assert lines({**document, "id": "own"}) == [("Bundle", {**document, "id": "own"})]


@pytest.mark.parametrize("entry", [None, 3, "x", {}, {"resource": 3}, {"response": {"status": "204"}}])
def test_an_entry_without_a_resource_is_a_line(entry: Any) -> None:
    ((name, line),) = lines(bundle("collection", entry))
    assert (name, line["entry"]) == ("Bundle", [entry])


def test_numbers_keep_their_digits() -> None:
    resource = b'{"resourceType":"X","a":1.10,"b":0.12345678901234567890,"c":123456789012345678901234567890,"d":1E-7}'
    text = b'{"resourceType":"Bundle","type":"collection","entry":[{"resource":' + resource + b"}]}"
    assert unpack(text) == [("X", resource)]


@pytest.mark.parametrize("text", [b"", b"{", b"NaN", b'{"a":Infinity}', b'"\\ud800"', b"[" * 100_000, b"\xff"])
def test_what_is_no_json_is_told(text: bytes) -> None:
    with pytest.raises(ValueError):
        unpack(text)


@given(
    st.lists(
        st.one_of(
            st.none(),
            st.fixed_dictionaries({"resource": st.fixed_dictionaries({"resourceType": st.text(max_size=5)})}),
            st.fixed_dictionaries({"request": st.fixed_dictionaries({"method": st.sampled_from(["GET", "DELETE"])})}),
        ),
        min_size=1,
    ),
    st.sampled_from(["collection", "transaction", "history", "searchset"]),
)
def test_lines_are_the_entries(entries: list[Any], kind: str) -> None:
    assert len(lines(bundle(kind, *entries))) == len(entries)


# --- files ------------------------------------------------------------------------------------------------------------


def landed(tmp_path: Path, source: Path) -> tuple[LandedExport, dict[str, list[Any]]]:
    export = land_folder(LandingStore(tmp_path / "landing"), "site_a", 1, source, NOW)
    content: dict[str, list[Any]] = {}
    for file in export.files:
        assert file.lines == len(open_landed(file.path).read().splitlines())
        content.setdefault(file.resource_type, []).extend(map(orjson.loads, open_landed(file.path).read().splitlines()))
    return export, content


def test_a_folder_of_bundles_lands_as_one_file_a_type(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    first = bundle("transaction", {"resource": patient("p1")}, {"resource": {"resourceType": "Basic", "id": "b1"}})
    (source / "a.json").write_text(json.dumps(first, indent=2), encoding="utf-8-sig")
    (source / "b.json.gz").write_bytes(
        gzip.compress(json.dumps(bundle("collection", {"resource": patient("p2")})).encode())
    )
    (source / "c.ndjson").write_bytes(b"\n".join(orjson.dumps(first) for _ in range(3)))
    (source / "d.json").write_text(json.dumps(patient("p3"), indent=1), encoding="utf-8")
    (source / "Patient.ndjson").write_bytes(b'{"resourceType": "Patient",  "id": "p4"}\n')
    export, content = landed(tmp_path, source)
    assert [item["id"] for item in content["Patient"]] == ["p4", "p1", "p2", "p1", "p1", "p1", "p3"]
    assert [item["id"] for item in content["Basic"]] == ["b1"] * 4
    assert [(file.number, file.resource_type) for file in export.files] == [
        (1, "Patient"),
        (2, "Patient"),
        (3, "Basic"),
    ]
    assert open_landed(export.files[0].path).read() == b'{"resourceType": "Patient",  "id": "p4"}\n'


def test_a_single_file(tmp_path: Path) -> None:
    file = tmp_path / "patient.json"
    file.write_text(json.dumps(bundle("collection", {"resource": patient("p1")}), indent=2), encoding="utf-8")
    assert landed(tmp_path, file)[1] == {"Patient": [patient("p1")]}


def test_ndjson_under_the_name_of_json(tmp_path: Path) -> None:
    file = tmp_path / "all.json"
    file.write_bytes(b'{"resourceType":"Patient","id":"p1"}\n\n{"resourceType":"Basic","id":"b1"}\n{"resourceT\n')
    _, content = landed_text(tmp_path, file)
    assert content == {
        "Patient": b'{"resourceType":"Patient","id":"p1"}\n',
        "Basic": b'{"resourceType":"Basic","id":"b1"}\n',
        "Unknown": b'{"resourceT\n',
    }


def test_broken_json_lands_as_one_line(tmp_path: Path) -> None:
    file = tmp_path / "broken.json"
    file.write_bytes(b'{"resourceType":\n"Patient",\n')
    assert landed_text(tmp_path, file)[1] == {"Unknown": b'{"resourceType": "Patient", \n'}


def test_an_empty_file_has_no_lines(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.json").write_bytes(b" \n")
    (source / "b.ndjson").write_bytes(b"")
    export, _ = landed(tmp_path, source)
    assert export.lines == 0


def test_another_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("x", encoding="utf-8")
    with pytest.raises(UsageError, match="neither a folder nor"):
        landed(tmp_path, file)


def landed_text(tmp_path: Path, source: Path) -> tuple[LandedExport, dict[str, bytes]]:
    export = land_folder(LandingStore(tmp_path / "landing"), "site_a", 1, source, NOW)
    return export, {file.resource_type: open_landed(file.path).read() for file in export.files}
