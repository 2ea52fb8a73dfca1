"""Whose a line is, what stays of another's line, and files that keep their lines' places while lines are erased."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.erasure.landed import Folder, erase_in, search
from pipeline.erasure.ownership import ErasedPersons, Owned, judged, judged_deletions
from pipeline.fhir.identity import SurrogateKeys
from pipeline.fhir.lines import is_erased
from pipeline.fhir.ndjson import Chunk
from pipeline.landing.chunks import read_lines
from pipeline.landing.deletions import read_deletions
from pipeline.landing.erased import LineEdit, erased_line, rewrite_files
from pipeline.landing.files import file_digest
from pipeline.landing.reading import open_landed, stored_file
from pipeline.landing.store import LandingStore

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
KEYS = SurrogateKeys("one", "salt")
GONE = "e.Anna-7"


def persons(*ids: str) -> ErasedPersons:
    return ErasedPersons(KEYS, [KEYS.of("Patient", patient) for patient in ids or (GONE,)])


def verdict(resource: Any, *ids: str, owned: Owned | None = None) -> str | None:
    raw = resource if isinstance(resource, bytes) else json.dumps(resource).encode()
    found = judged(raw, persons(*ids), owned)
    return found.verdict if found else None


def ref(patient: str = GONE, before: str = "Patient/") -> dict[str, str]:
    return {"reference": f"{before}{patient}"}


@pytest.mark.parametrize(
    ("resource", "expected"),
    [
        ({"resourceType": "Patient", "id": GONE}, "theirs"),
        ({"resourceType": "Patient", "id": "b"}, None),
        ({"resourceType": "Patient", "id": "b", "link": [{"other": ref(), "type": "seealso"}]}, "shared"),
        ({"resourceType": "Observation", "subject": ref()}, "theirs"),
        ({"resourceType": "Observation", "subject": ref(before="https://x.org/api/Patient/")}, "theirs"),
        ({"resourceType": "Observation", "subject": ref(f"{GONE}/_history/2")}, "theirs"),
        ({"resourceType": "Observation", "subject": ref(before="urn:uuid:")}, "theirs"),
        ({"resourceType": "Observation", "subject": ref(f"{GONE}8")}, None),
        ({"resourceType": "Observation", "subject": ref(before="Group/")}, None),
        ({"resourceType": "Observation", "subject": ref("b"), "focus": [ref()]}, "shared"),
        ({"resourceType": "Coverage", "beneficiary": ref("b"), "subscriber": ref()}, "shared"),
        ({"resourceType": "ResearchSubject", "individual": ref()}, "theirs"),
        ({"resourceType": "Task", "for": ref(), "requester": ref("b")}, "theirs"),
        ({"resourceType": "Account", "subject": [ref(), ref("b")]}, "shared"),
        ({"resourceType": "Appointment", "participant": [{"actor": ref()}]}, "theirs"),
        ({"resourceType": "Group", "member": [{"entity": ref()}, {"entity": ref("b")}]}, "shared"),
        ({"resourceType": "Group", "member": [{"entity": ref()}]}, "theirs"),
        ({"resourceType": "Practitioner", "extension": [{"valueReference": ref()}]}, "shared"),
        ({"resourceType": "Binary", "securityContext": ref()}, "theirs"),
        ({"resourceType": "Bundle", "entry": [{"resource": {"resourceType": "Patient", "id": GONE}}]}, "theirs"),
        (b'{"resourceType":"Observation","subject":{"reference":"Patient\\/e.Anna-7"}}', "theirs"),
        (b'{"resourceType":"Observation","subject":{"reference":"Patient/e.Anna-7"', "theirs"),
        (b'{"resourceType":"Patient","id":"e.Anna-7","name"', "theirs"),
        (b'["Patient/e.Anna-7"]', "theirs"),
        (b'{"resourceType":"Observation","subject":{"reference":"Patient/e.Anna-7', "theirs"),
        (b'{"resourceType":"Observation","id":"e.Anna-7"', None),
    ],
)
def test_whose_a_line_is(resource: Any, expected: str | None) -> None:
    assert verdict(resource) == expected


def test_a_resource_of_two_erased_persons_is_theirs() -> None:
    assert verdict({"resourceType": "Account", "subject": [ref(), ref("b")]}, GONE, "b") == "theirs"


def test_what_names_nobody_follows_what_it_is_about() -> None:
    owned = Owned({("Observation", "o1")}, {"b1"})
    targets = [{"reference": "Observation/o1"}]
    about = {"resourceType": "Provenance", "target": targets, "agent": [{"who": ref("d", "Practitioner/")}]}
    assert verdict(about) is None
    assert verdict(about, owned=owned) == "theirs"
    targets.append({"reference": "Observation/o2"})
    assert verdict(about, owned=owned) == "shared"
    assert verdict({"resourceType": "Binary", "id": "b1"}, owned=owned) == "theirs"
    assert verdict({"resourceType": "Binary", "id": "b2"}, owned=owned) is None
    document = {"subject": ref(), "content": [{"attachment": {"url": "https://x.org/R4/Binary/b1?sig=1"}}]}
    found = judged(json.dumps({"resourceType": "DocumentReference", **document}).encode(), persons())
    assert found
    assert found.binaries == {"b1"}


def test_of_a_shared_line_all_else_stays_as_it_was_written() -> None:
    raw = (
        b'{"resourceType": "Observation", "subject": {"reference": "Patient/b"}, "valueQuantity": {"value": 1.10},'
        b' "focus": [{"reference": "https://x.org/Patient/e.Anna-7", "display": "Anna A."}, {"reference": "Patient/c"}],'
        b' "text": {"div": "<a href=\\"https://x.org/Patient/e.Anna-7\\">her</a>"}}'
    )
    found = judged(raw, persons())
    assert found
    assert found.content is not None
    assert len(found.content) <= len(raw)
    assert b"Anna" not in found.content
    assert b'"value":1.10' in found.content
    kept = json.loads(found.content)
    assert kept["focus"] == [{"display": "erased"}, {"reference": "Patient/c"}]
    assert kept["text"]["div"] == '<a href="https://x.org/Patient/xxxxxxxx">her</a>'
    assert judged(found.content, persons()) is None


def test_links_of_patients_tell_who_is_the_same_person() -> None:
    for own, other, kind, expected in (
        ("b", GONE, "replaced-by", {"b"}),
        (GONE, "b", "replaces", {"b"}),
        (GONE, "b", "seealso", set()),
        ("b", "c", "replaces", None),
    ):
        line = {"resourceType": "Patient", "id": own, "link": [{"other": ref(other), "type": kind}]}
        found = judged(json.dumps(line).encode(), persons())
        named = {KEYS.of("Patient", patient) for patient in expected} if expected is not None else None
        assert (found.same_person if found else None) == named


def test_deletions_keep_their_places(tmp_path: Path) -> None:
    names = ("Observation/o9", f"Patient/{GONE}", "Observation/o1", "Binary/b1")
    bundle = {"resourceType": "Bundle", "entry": [{"request": {"method": "DELETE", "url": name}} for name in names]}
    raw = json.dumps(bundle).encode()
    found = judged_deletions(raw, persons(), Owned({("Observation", "o1")}, {"b1"}))
    assert found
    line, entries = found
    assert entries == [1, 2, 3]
    assert line.content is not None
    file = tmp_path / "Bundle.ndjson"
    file.write_bytes(line.content.ljust(len(raw)) + b"\n" + erased_line(20) + b"\n")
    deletions = list(read_deletions(file))
    assert [deletion.is_erased for deletion in deletions] == [False, True, True, True, True]
    assert deletions[0].resource_id == "o9"


LINES = st.lists(
    st.tuples(
        st.sampled_from([b"", b"{}", b'{"resourceType":"Patient","id":"x"}', b"\xef\xbb\xbf{}", b"  "]), st.booleans()
    )
)


@given(LINES, st.sampled_from([b"\n", b"\r\n"]), st.booleans())
def test_lines_keep_their_places(lines: list[tuple[bytes, bool]], end: bytes, last_end: bool) -> None:
    import tempfile

    content = end.join(line for line, _ in lines) + (end if last_end else b"")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.ndjson"
        path.write_bytes(content)
        before, digest = read_lines(path, Chunk(0, len(content), 1)), file_digest(path)
        gone = [line for line, (_, erased) in zip(before, lines, strict=False) if erased]
        rewrite_files({path: [LineEdit(line.offset, len(line.raw)) for line in gone]})
        after = read_lines(path, Chunk(0, len(content), 1))
        assert file_digest(path).lines == digest.lines
    assert [(line.number, line.offset, len(line.raw)) for line in after] == [
        (line.number, line.offset, len(line.raw)) for line in before
    ]
    for old, new in zip(before, after, strict=True):
        if old not in gone:
            assert new == old
        elif len(old.raw) >= 8:
            assert is_erased(new.raw)


def test_a_finished_export_is_whole_after_lines_were_erased(tmp_path: Path) -> None:
    store = LandingStore(tmp_path)
    draft = store.begin("one", 1)
    mine = json.dumps({"resourceType": "Observation", "subject": ref()}).encode()
    other = json.dumps({"resourceType": "Observation", "subject": ref("b")}).encode()
    with draft.writer(1, "Observation") as writer:
        writer.write(mine + b"\r\n" + other + b"\n\n" + mine)
        file = draft.keep(writer, 1, "Observation")
    export = draft.finish("folder", NOW, (file,))
    folder = Folder(draft, export, export.files)
    found = search([folder], persons())
    assert [line.line for line in found.found()] == [1, 4]
    erase_in(folder, found, NOW)
    erased = store.open("one", 1, verify=True)
    assert erased.erased_at == NOW
    assert (erased.files[0].erased_lines, erased.lines) == (2, 3)
    assert open_landed(erased.files[0].path).read().split(b"\n")[1] == other
    assert stored_file(erased.files[0].path).stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in (draft.folder / "files").iterdir()) == [
        "Observation.00001.ndjson.json",
        "Observation.00001.ndjson.zst",
    ]
    again = Folder(draft, erased, erased.files)
    assert not search([again], persons()).lines
