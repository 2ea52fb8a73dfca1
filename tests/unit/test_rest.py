"""Reads and searches against a real server on loopback; pages cut from their Bundles; the rate limiter; lists of patients."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.clock import ManualClock
from pipeline.core.errors import ConfigurationError, ProtocolError, RemoteRefused, UnsafeRemote, UsageError
from pipeline.core.settings import DEFAULT_CRAWL_SEARCHES, SiteSettings, load_settings
from pipeline.extract.http.rate_limiter import RateLimiter
from pipeline.extract.http.transport import Transport, shown_url
from pipeline.extract.rest.client import RestClient, SearchRefused, is_readable_id
from pipeline.extract.rest.patient_list import read_patients
from pipeline.fhir.search_page import SearchIssue, as_line, parse_page, search_issues
from pipeline.landing.references import attachments, references_in, result_references
from tests.unit.test_transport import Reply, Server, outcome, running, session_of, site_at

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[RestClient]:
    clock = ManualClock(NOW)
    with Transport(site_at(server.url), clock) as transport:
        yield RestClient(session_of(transport), RateLimiter(clock, 10))


def bundle(*entries: bytes, following: str | None = None) -> Reply:
    links = [{"relation": "self", "url": "x"}, *([{"relation": "next", "url": following}] if following else [])]
    return Reply(body=b'{"resourceType":"Bundle","link":%s,"entry":[%s]}' % (orjson.dumps(links), b",".join(entries)))


def entry(line: bytes, mode: str = "match") -> bytes:
    return b'{"resource":%s,"search":{"mode":"%s"}}' % (line, mode.encode())


GOAL = b'{"resourceType":"Goal","id":"g%d","n":1.10}'


# --- searches


@pytest.mark.parametrize(
    "query",
    ["sessionID=20-A%2Bb+c/%2F~d%3D%3D&page=2", "a=%7C|b&&c=", "x=%E2%82%AC&y=a:b;c,d"],
)
def test_next_is_followed_as_it_was_given(server: Server, client: RestClient, query: str) -> None:
    server.on("/fhir/Goal", bundle(entry(GOAL % 1), following=f"{server.url}/fhir/pages?{query}"))
    server.on("/fhir/pages", bundle(entry(GOAL % 2)))
    pages = list(client.search("Goal", [("patient", "p|1"), ("_count", "5")]))
    assert [line for page in pages for _, _, line in page.resources] == [GOAL % 1, GOAL % 2]
    first, second = (path for _, path, _ in server.requests)
    assert first == "/fhir/Goal?patient=p%7C1&_count=5"
    assert second == f"/fhir/pages?{query}"
    assert server.requests[1][2]["authorization"] == "Bearer token-1"


def test_a_relative_next_is_taken_from_the_page(server: Server, client: RestClient) -> None:
    server.on("/fhir/Goal", bundle(following="Goal/_page?s=1"))
    server.on("/fhir/Goal/_page", bundle(entry(GOAL % 1)))
    assert len(list(client.search("Goal", [("patient", "1")]))) == 2


def test_the_token_never_goes_to_another_host(server: Server, client: RestClient) -> None:
    with running() as other:
        server.on("/fhir/Goal", bundle(following=f"{other.url}/fhir/Goal?page=2"))
        with pytest.raises(UnsafeRemote, match="not allow-listed"):
            list(client.search("Goal", [("patient", "1")]))
        assert other.requests == []


def test_links_in_a_circle_are_an_error(server: Server, client: RestClient) -> None:
    server.on("/fhir/Goal", bundle(following=f"{server.url}/fhir/Goal?page=2"))
    with pytest.raises(ProtocolError, match="in a circle"):
        list(client.search("Goal", [("patient", "1")]))
    assert len(server.requests) == 2


def test_a_refused_search_has_its_codes_and_no_patient(server: Server, client: RestClient) -> None:
    details = {"coding": [{"code": "59108"}], "text": "A required element is missing."}
    body = outcome("required", details=details, diagnostics="Patient/secret-7 must have either code or category.")
    server.on("/fhir/Observation", Reply(400, body))
    with pytest.raises(SearchRefused, match="A required element is missing") as caught:
        list(client.search("Observation", [("patient", "secret-7")]))
    assert (caught.value.status, caught.value.codes) == (400, ("59108",))
    assert "secret-7" not in str(caught.value)
    server.on("/fhir/Observation", Reply(403, b"<html>no</html>"))
    with pytest.raises(SearchRefused) as caught:
        list(client.search("Observation", []))
    assert caught.value.codes == ("HTTP 403",)
    assert "`.read` does not include `.search`" in caught.value.advice


def test_passing_trouble_of_a_page_is_waited_out(server: Server, client: RestClient) -> None:
    server.on("/fhir/Goal", Reply(503), Reply(429, headers={"Retry-After": "3"}), bundle(entry(GOAL % 1)))
    assert len(list(client.search("Goal", []))) == 1


# --- reads


def test_a_read_gives_one_line(server: Server, client: RestClient) -> None:
    server.on(
        "/fhir/Goal/g1", Reply(body=b'\xef\xbb\xbf{\r\n  "resourceType" : "Goal",\n "id":"g1", "t": "a \\n b  c"}\n')
    )
    assert client.read("Goal", "g1") == b'{"resourceType":"Goal","id":"g1","t":"a \\n b  c"}'


def test_another_resource_than_the_one_asked_for_is_refused(server: Server, client: RestClient) -> None:
    server.on("/fhir/Goal/g1", Reply(body=GOAL % 2))
    with pytest.raises(ProtocolError, match="another resource"):
        client.read("Goal", "g1")
    server.on("/fhir/Goal/g1", Reply(body=outcome("not-found")))
    with pytest.raises(RemoteRefused, match="OperationOutcome"):
        client.read("Goal", "g1")


def test_a_resource_that_is_too_large_is_refused(server: Server) -> None:
    clock = ManualClock(NOW)
    with Transport(site_at(server.url, max_line_bytes=1024), clock) as transport:
        client = RestClient(session_of(transport), RateLimiter(clock, 10))
        server.on("/fhir/Goal/g1", Reply(body=b'{"resourceType":"Goal","id":"g1","t":"%s"}' % (b"x" * 2000)))
        with pytest.raises(UnsafeRemote, match="longer than 1024 bytes"):
            client.read("Goal", "g1")


def test_a_document_that_comes_as_it_is_becomes_a_binary(server: Server, client: RestClient) -> None:
    server.on("/fhir/Binary/b1", Reply(body=b"\x00PDF", headers={"Content-Type": "application/pdf"}))
    assert orjson.loads(client.read("Binary", "b1")) == {
        "resourceType": "Binary",
        "id": "b1",
        "contentType": "application/pdf",
        "data": "AFBERg==",
    }


@pytest.mark.parametrize("bad", ["..", ".", "", "a/b", "a?b", "a#b", "a b", "a%2fb", "é", "x" * 257])
def test_an_id_never_changes_the_address(client: RestClient, server: Server, bad: str) -> None:
    assert not is_readable_id(bad)
    with pytest.raises(ProtocolError, match="cannot be part of an address"):
        client.read("Goal", bad)
    assert server.requests == []


def test_ids_of_resources_are_not_shown() -> None:
    assert shown_url("https://h/api/Patient/abc?x=1") == "https://h/api/Patient/…?x=…"
    assert shown_url("https://h/api/Group/g1/$export?_type=a") == "https://h/api/Group/g1/$export?_type=…"
    assert shown_url("https://h/api/FHIR/R4/BulkRequest/0A") == "https://h/api/FHIR/R4/BulkRequest/0A"


# --- pages


def test_only_matches_and_includes_are_resources() -> None:
    issue = b'{"severity":"%s","code":"processing","details":{"coding":[{"code":"%s"}]}}'
    told = b'{"resourceType":"OperationOutcome","issue":[' + issue + b"]}"
    page = parse_page(
        bundle(
            entry(GOAL % 1),
            entry(GOAL % 2, "include"),
            entry(GOAL % 3, "absent"),
            b'{"resource":%s}' % (GOAL % 4),
            entry(told % (b"warning", b"4101"), "outcome"),
            entry(told % (b"warning", b"59109"), "outcome"),
            entry(told % (b"fatal", b"4134")),
            b'{"fullUrl":"urn:uuid:1"}',
        ).body,
        "The test",
    )
    assert [one for _, one, _ in page.resources] == ["g1", "g2", "g4"]
    assert page.issues == (
        SearchIssue("informational", "4101"),
        SearchIssue("warning", "59109"),
        SearchIssue("refused", "4134"),
    )
    assert len(page.outcomes) == 2, "that nothing was found is not kept"


@pytest.mark.parametrize("body", [b"[]", b"{}", b"<html>", b'{"resourceType":"Goal","id":"1"}', b"", b"\xff{}"])
def test_what_is_no_bundle_is_an_error_without_its_content(body: bytes) -> None:
    with pytest.raises(ProtocolError, match=r"The test: the server"):
        parse_page(body, "The test")


def test_a_code_is_shown_only_if_it_looks_like_one() -> None:
    assert search_issues(outcome("John Doe, born 1970"), "x") == (SearchIssue("refused", "unknown"),)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=5), json_values, max_size=5))
def test_a_line_says_what_the_spread_out_resource_says(value: dict[str, object]) -> None:
    spread = orjson.dumps(value, option=orjson.OPT_INDENT_2)
    for text in (spread, spread.replace(b"\n", b"\r\n"), orjson.dumps(value)):
        line = as_line(text)
        assert b"\n" not in line
        assert b"\r" not in line
        assert line == orjson.dumps(value)


# --- references in landed lines


def test_references_are_found_wherever_they_stand() -> None:
    line = (
        rb'{"a":{"reference":"Practitioner/abc"},"b":[{"reference" : "https://h/R4/PractitionerRole/e.1-2/_history/3"}],'
        rb'"c":{"reference":"https:\/\/h\/Location\/q"},"t":"\"reference\":\"Practitioner/no\"",'
        rb'"s":{"reference":"Patient/1","display":"Medication/zz"},"n":{"reference":"Medication?identifier=1"},'
        rb'"o":{"reference":"Organization/"},"p":{"reference":"#Medication/1x"}}'
    )
    found = references_in(line * 2, ["Practitioner", "PractitionerRole", "Location", "Medication", "Organization"])
    assert found - {"#Medication/1x"} == {
        "Practitioner/abc",
        "https://h/R4/PractitionerRole/e.1-2/_history/3",
        "https://h/Location/q",
    }
    assert references_in(line, []) == set()


def test_results_and_attachments_of_any_shape() -> None:
    report = {
        "result": [{"reference": "Observation/1"}, {"display": "x"}, 7, {"reference": 3}],
        "presentedForm": [None],
    }
    assert list(result_references(report)) == ["Observation/1"]
    assert list(result_references({"result": "x"})) == []
    document = {"content": [{"attachment": {"url": "Binary/1"}}, {"attachment": {"data": "eA=="}}, {}]}
    assert list(attachments(document)) == ["Binary/1"]


# --- the rate limiter


def test_the_pace_is_kept_by_all_workers_together() -> None:
    clock = ManualClock(NOW)
    rate_limiter = RateLimiter(clock, 4)
    for _ in range(9):
        rate_limiter.wait()
    assert (clock.now() - NOW).total_seconds() == pytest.approx(2.0)
    clock.advance(100)
    before = clock.now()
    rate_limiter.wait()
    assert clock.now() == before, "a pause is not made up for, and costs nothing"
    rate_limiter.wait()
    assert (clock.now() - before).total_seconds() == pytest.approx(0.25)


def test_the_pace_gives_each_thread_a_place_of_its_own() -> None:
    clock = ManualClock(NOW)
    rate_limiter = RateLimiter(clock, 10)
    threads = [threading.Thread(target=rate_limiter.wait) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(clock.slept) <= 20
    assert rate_limiter._next is not None
    assert (rate_limiter._next - NOW).total_seconds() == pytest.approx(
        2.0, abs=0.2 + (clock.now() - NOW).total_seconds()
    )


# --- lists of patients, settings


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("e1\ne2\n\ne1\n# a comment\n", ["e1", "e2"]),
        ("\ufeffPatient/e1\r\nPatient/e2\r\n", ["e1", "e2"]),
        ('mrn,Patient_ID,name\n1,e1,"A, B"\n2,e2,C\n', ["e1", "e2"]),
        ("fhir_id\ne1\n", ["e1"]),
    ],
)
def test_lists_as_people_write_them(tmp_path: Path, text: str, expected: list[str]) -> None:
    file = tmp_path / "patients.txt"
    file.write_text(text, encoding="utf-8")
    assert read_patients(file) == expected


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("e1\nJane Doe\n", "number 2 is not a valid FHIR id"),
        ("", "there is no patient"),
        ("1,e1\n2,e2\n", "2 columns and no header"),
        ("mrn,patient_id\n1,\n", "number 2 is not a valid FHIR id"),
        ("https://h/Patient/e1\n", "number 1 is not a valid FHIR id"),
    ],
)
def test_unusable_lists_are_refused_without_showing_them(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "patients.txt"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=told) as caught:
        read_patients(file)
    assert "Jane" not in str(caught.value)
    with pytest.raises(UsageError, match="cannot be read"):
        read_patients(tmp_path / "none")


def test_searches_are_a_setting_with_defaults() -> None:
    plain = SiteSettings(name="s")
    assert plain.searches_of("Observation") == DEFAULT_CRAWL_SEARCHES["Observation"]
    assert plain.searches_of("Encounter") == ("",)
    own = SiteSettings(name="s", crawl_searches={"Observation": ("code=8867-4,718-7",), "Condition": ()})
    assert (own.searches_of("Observation"), own.searches_of("Condition")) == (("code=8867-4,718-7",), ("",))


@pytest.mark.parametrize(
    "wrong",
    [
        {"crawl_searches": {"Observation": ["laboratory"]}},
        {"crawl_searches": {"Observation": ["category=x&patient=1"]}},
        {"crawl_searches": {"Observation": ["patient=1"]}},
        {"crawl_searches": {"observation": ["category=x"]}},
        {"hydrate_types": ["Patient"]},
        {"requests_per_second": 0},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"search|type|fetched|greater"):
        SiteSettings(name="s", **wrong)  # type: ignore[arg-type]  # what a sites.yaml may say


def test_a_site_needs_groups_or_patients(tmp_path: Path) -> None:
    entry = "    fhir_url: https://h/R4\n    client_id: c\n    private_key_file: key.pem\n"
    (tmp_path / "sites.yaml").write_text(f"sites:\n  s:\n{entry}")
    with pytest.raises(ConfigurationError, match="name a patients_file"):
        load_settings({"EPIC_OMOP_HOME": str(tmp_path)})
    (tmp_path / "sites.yaml").write_text(f"sites:\n  s:\n{entry}    patients_file: patients.csv\n")
    site = load_settings({"EPIC_OMOP_HOME": str(tmp_path)}).site("s")
    assert site.patients_file == tmp_path / "patients.csv"
