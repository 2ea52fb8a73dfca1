"""Reads and searches of the simulated Epic over real HTTP: what they give, what they refuse, how they page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import orjson
import pytest

from pipeline.core.clock import ManualClock
from pipeline.sandbox.config import RegisteredClient
from pipeline.sandbox.server import RunningSandbox
from tests.integration.test_sandbox_server import RSA_PEM, START, Site, config

RESULTS = "laboratory,vital-signs,social-history,survey"


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    clock = ManualClock(START)
    clients = (
        *config(clock).clients,
        RegisteredClient("reads", (RSA_PEM,), ("system/Patient.r", "system/Observation.s")),
    )
    changes = config(clock, clients=clients, entries_per_page=20, left_out_types=frozenset({"Medication"}))
    with RunningSandbox(changes) as sandbox, httpx.Client() as http:
        yield Site(sandbox, clock, http)


def get(site: Site, path: str, client: str = "client-1", **parameters: Any) -> httpx.Response:
    asked = {"iss": client, "sub": client}
    token = site.ask_token(site.assertion(**asked)).json()["access_token"]
    url = path if path.startswith("http") else f"{site.sandbox.fhir_url}/{path}"
    return site.http.get(url, params=parameters or None, headers={"Authorization": f"Bearer {token}"})


def lines(site: Site, *types: str) -> dict[str, bytes]:
    source = site.sandbox.state.config.groups["all"]
    found = {}
    for _, line in source.lines(types, START.date(), 0):
        try:
            resource = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if "id" in resource:
            found[resource["id"]] = line
    return found


def codes(outcome: dict[str, Any]) -> list[str]:
    return [issue["details"]["coding"][0]["code"] for issue in outcome["issue"]]


def test_a_read_gives_the_bytes_of_the_export(site: Site) -> None:
    for resource_type in ("Patient", "Medication", "Practitioner"):  # a type that the export leaves out, too
        resource_id, line = next(iter(lines(site, resource_type).items()))
        answer = get(site, f"{resource_type}/{resource_id}")
        assert (answer.status_code, answer.content) == (200, line)
    unknown = get(site, "Patient/eNobody")
    assert (unknown.status_code, codes(unknown.json())) == (404, ["4102"])
    assert get(site, "Nonsense/1").status_code == 404
    assert site.http.get(f"{site.sandbox.fhir_url}/Patient/x").status_code == 401


def test_a_document_is_there_although_no_export_has_it(site: Site) -> None:
    document = orjson.loads(next(iter(lines(site, "DocumentReference").values())))
    binary = get(site, document["content"][0]["attachment"]["url"]).json()
    assert (binary["resourceType"], binary["contentType"]) == ("Binary", "text/html")


def test_pages_are_followed_by_an_opaque_link(site: Site) -> None:
    observations = [orjson.loads(line) for line in lines(site, "Observation").values()]
    subjects = [each["subject"]["reference"] for each in observations if "subject" in each]
    patient = max(set(subjects), key=subjects.count).removeprefix("Patient/")
    page = get(site, "Observation", patient=patient, category=RESULTS, _count=1000)
    found: list[str] = []
    pages = 0
    while True:
        bundle = page.json()
        assert len(bundle["entry"]) <= 20
        assert {entry["search"]["mode"] for entry in bundle["entry"]} == {"match"}
        found += [entry["resource"]["id"] for entry in bundle["entry"]]
        pages += 1
        links = {link["relation"]: link["url"] for link in bundle["link"]}
        if "next" not in links:
            break
        assert "%2B" in links["next"]
        assert get(site, links["next"].replace("%2B", "+")).status_code == 400, "opaque: not to be decoded"
        again, page = get(site, links["next"]), get(site, links["next"])
        assert again.content != b""
        assert again.json()["entry"] == page.json()["entry"], "a page may be asked for again"
    assert pages > 2
    wanted = {each["id"] for each in observations if each.get("subject", {}).get("reference") == f"Patient/{patient}"}
    assert sorted(found) == sorted(wanted)


def test_count_is_a_ceiling(site: Site) -> None:
    patient = next(iter(lines(site, "Patient")))
    bundle = get(site, "Encounter", patient=patient, _count=1).json()
    assert len(bundle["entry"]) == 1


def test_observations_need_a_category_or_a_code(site: Site) -> None:
    patient = next(iter(lines(site, "Patient")))
    bare = get(site, "Observation", patient=patient)
    assert (bare.status_code, codes(bare.json())) == (400, ["59108"])
    assert "code or category" in bare.json()["issue"][0]["diagnostics"]
    assert get(site, "Observation", patient=patient, code="8867-4").status_code == 200
    unknown = get(site, "Observation", patient=patient, category="procedure")
    assert (unknown.status_code, codes(unknown.json())) == (400, ["59100"])
    assert codes(get(site, "Encounter").json()) == ["59108"]


def test_nothing_found_is_an_outcome_of_its_own(site: Site) -> None:
    bundle = get(site, "Encounter", patient="eNobody").json()
    (entry,) = bundle["entry"]
    assert (bundle["total"], entry["search"]["mode"]) == (0, "outcome")
    assert (codes(entry["resource"]), entry["resource"]["issue"][0]["severity"]) == (["4101"], "warning")


def test_last_updated_is_ignored_with_a_warning_where_it_is_not_known(site: Site) -> None:
    patient = next(iter(lines(site, "Patient")))
    bundle = get(site, "Patient", _id=patient, _lastUpdated="ge2999-01-01T00:00:00+00:00").json()
    assert [entry["search"]["mode"] for entry in bundle["entry"]] == ["match", "outcome"]
    assert codes(bundle["entry"][1]["resource"]) == ["59109"]


def test_a_right_to_read_is_none_to_search_and_the_other_way_round(site: Site) -> None:
    """Rule 8."""
    patient = next(iter(lines(site, "Patient")))
    assert get(site, f"Patient/{patient}", client="reads").status_code == 200
    assert get(site, "Patient", client="reads", _id=patient).status_code == 403
    assert get(site, "Observation", client="reads", patient=patient, category=RESULTS).status_code == 200
    assert get(site, "Observation/e1", client="reads").status_code == 403
    assert get(site, f"Encounter?patient={patient}", client="reads").status_code == 403


def test_a_session_is_the_clients_own(site: Site) -> None:
    patient = next(iter(lines(site, "Patient")))
    bundle = get(site, "Encounter", patient=patient, _count=1).json()
    following = next((link["url"] for link in bundle["link"] if link["relation"] == "next"), None)
    assert following is not None
    assert get(site, following, client="narrow").status_code == 400


def test_types_that_are_left_out_come_by_reference_only(site: Site) -> None:
    _, manifest = site.exported(types="Patient,Medication")
    assert [entry["type"] for entry in manifest["output"]] == ["Patient"]
