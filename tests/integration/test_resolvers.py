"""Resolvers: unknown codes are asked of other services once, exact answers map, and nothing else of a service gets in."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.clock import ManualClock
from pipeline.core.resolver_settings import ResolverSettings
from pipeline.core.settings import SiteSettings
from pipeline.load.fingerprints import site_rules
from pipeline.load.remap import remap
from pipeline.load.resolving import ResolverReport, resolve_and_remap, resolve_codes
from pipeline.quality.deep.model import DeepRequest
from pipeline.quality.deep.run import verify_deep
from pipeline.warehouse.resolver_cache import AnswerCache, ResolverAnswer
from pipeline.warehouse.runtime import Runtime
from tests.command_line import CommandLine
from tests.integration.support import Warehouse, observation, patient, reference
from tests.terminology_services import Reply, Seen, Services, resolution, running_services

DX = "https://hospital.example.org/codes/diagnoses"
ICD = "http://hl7.org/fhir/sid/icd-10-cm"
NAUSEA = 31967
#: Concepts that the demonstration vocabulary has not, or not as a Standard one.
MISSING, NOT_STANDARD = 4_148_407, 8507
KEY = "oh_secret_key"


def condition(resource_id: str, system: str | None, code: str | None, text: str) -> dict[str, Any]:
    coding = {"coding": [{"system": system, "code": code, "display": "Said by Mrs Miller"}]} if code else {}
    return {
        "id": resource_id,
        "code": {**coding, "text": text},
        "subject": reference("Patient", "p1"),
        "recordedDate": "2025-01-02",
    }


FILES = {
    "Patient": [patient()],
    "Condition": [
        condition("c1", DX, "exact", "Free text of Mrs Miller"),
        condition("c2", DX, "semantic", "x"),
        condition("c3", DX, "not-held", "x"),
        condition("c4", DX, "by-fhir", "x"),
        condition("c5", DX, "nowhere", "x"),
        condition("c6", DX, "exact", "the same again"),
        condition("c7", None, None, "A text alone"),
        condition("c8", ICD, "ZZ9.99", "x"),
    ],
    "Coverage": [
        {
            "id": "v1",
            "status": "active",
            "beneficiary": reference("Patient", "p1"),
            "payor": [{"type": "Organization", "display": "Zeppelin Mutual"}],
            "period": {"start": "2024-01-01"},
        }
    ],
    "Observation": [observation(valueQuantity={"value": 1, "unit": "Tage"})],
}
CODES = {(DX, "exact"), (DX, "semantic"), (DX, "not-held"), (DX, "by-fhir"), (DX, "nowhere"), (ICD, "ZZ9.99")}


@pytest.fixture(scope="module")
def loaded(module_warehouse: Warehouse) -> Warehouse:
    module_warehouse.load(FILES)
    return module_warehouse


@pytest.fixture
def services() -> Iterator[Services]:
    with running_services() as found:
        found.omophub = {
            (DX, "exact"): resolution("EXACT", NAUSEA),
            (DX, "semantic"): resolution("422587007", NAUSEA, "semantic_match", similarity_score=0.93),
            (DX, "not-held"): resolution("not-held", MISSING, "direct"),
        }
        found.translations = {
            (DX, "by-fhir"): [("equivalent", str(MISSING)), ("relatedto", "1")],
            (DX, "semantic"): [("wider", str(NAUSEA))],
        }
        found.concepts = {str(MISSING): ("", [str(NAUSEA), str(NOT_STANDARD)])}
        yield found


@pytest.fixture
def world(loaded: Warehouse, services: Services, monkeypatch: pytest.MonkeyPatch) -> Warehouse:
    monkeypatch.setenv("RESOLVER_KEY", KEY)
    shutil.rmtree(loaded.runtime.settings.home / "vocabulary" / "resolvers", ignore_errors=True)
    use(loaded, omophub(services))
    return loaded


def omophub(services: Services, **more: Any) -> ResolverSettings:
    return ResolverSettings(kind="omophub", url=services.omophub_url, api_key_env="RESOLVER_KEY", **more)


def fhir(services: Services, **more: Any) -> ResolverSettings:
    return ResolverSettings(kind="fhir", url=services.fhir_url, **more)


def use(warehouse: Warehouse, *resolvers: ResolverSettings) -> None:
    site = SiteSettings(name="one", resolvers=resolvers, test_mode=True)
    settings = warehouse.runtime.settings.model_copy(update={"sites": {"one": site}})
    warehouse.runtime = Runtime(settings, warehouse.runtime.clock)


def site_of(warehouse: Warehouse) -> SiteSettings:
    return warehouse.runtime.settings.sites["one"]


def ask(warehouse: Warehouse, **options: Any) -> list[ResolverReport]:
    return resolve_codes(warehouse.runtime, site_of(warehouse), **options)


def conditions(warehouse: Warehouse) -> dict[str, int]:
    rows = warehouse.rows(
        "SELECT resource_id, condition_concept_id FROM condition_occurrence JOIN row_source"
        " ON cdm_table = 'condition_occurrence' AND row_id = condition_occurrence_id ORDER BY 1"
    )
    return dict(rows)


def kept(warehouse: Warehouse) -> dict[str, bytes]:
    folder = warehouse.runtime.settings.home / "vocabulary" / "resolvers"
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*")) if path.name != ".lock"}


def answers(warehouse: Warehouse, place: int = 0) -> dict[tuple[str, str], ResolverAnswer]:
    settings = warehouse.runtime.settings
    index = site_rules(warehouse.runtime, site_of(warehouse)).index
    cache = AnswerCache(settings.home, site_of(warehouse).resolvers[place], index.content_hash)
    return cache.known(warehouse.runtime.clock.now())


@pytest.mark.requirement("f2o-038", "f2o-110", "f2o-111")
def test_unknown_codes_are_asked_once_and_exact_answers_map(world, services):
    use(world, omophub(services, release="2025.2"), fhir(services, fhir_version="R5"))
    before = conditions(world)
    assert set(before.values()) == {0}
    assert [report.due for report in ask(world, dry_run=True)] == [6, 6]
    assert services.seen == []

    night = resolve_and_remap(world.runtime, site_of(world))
    hub, server = night.reports
    assert (hub.exact, hub.not_standard, hub.suggestions, hub.unknown, hub.unanswered) == (2, 1, 1, 3, 0)
    assert (server.exact, server.not_standard, server.suggestions, server.unknown) == (1, 0, 1, 3)
    assert night.sentences() == []
    assert night.remapped is not None
    assert night.remapped.mapped == {"Condition": 3}, "and nothing else is touched"
    by_source = {resource: concept for resource, concept in conditions(world).items() if concept}
    assert by_source == {"c1": NAUSEA, "c4": NAUSEA, "c6": NAUSEA}
    world.assert_whole()

    requests = len(services.seen)
    assert verify_deep(world.runtime, DeepRequest(persons=5)).ok, "a fresh load reads the same answers"
    assert len(services.seen) == requests
    first, *others = services.seen
    assert {(coding["system"], coding["code"]) for coding in first.body["codings"]} == CODES
    assert all(coding.keys() == {"system", "code"} for coding in first.body["codings"])
    assert (first.headers["x-vocab-version"], first.headers["authorization"]) == ("2025.2", f"Bearer {KEY}")
    assert {one.path for one in others} == {"/fhir/ConceptMap/$translate", "/fhir/CodeSystem/$lookup"}
    translated = [one.body["parameter"][0]["valueCoding"]["code"] for one in others if "translate" in one.path]
    assert sorted(translated) == ["ZZ9.99", "by-fhir", "not-held", "nowhere", "semantic"]
    assert not any("authorization" in one.headers for one in others)
    assert not any(b"Miller" in one.raw or b"alone" in one.raw or b"Tage" in one.raw for one in services.seen)
    assert KEY.encode() not in b"".join(kept(world).values())

    services.seen.clear()
    bytes_before, overlay = kept(world), site_rules(world.runtime, site_of(world)).index
    again = resolve_and_remap(world.runtime, site_of(world))
    assert (services.seen, again.remapped) == ([], None)
    assert kept(world) == bytes_before
    assert site_rules(world.runtime, site_of(world)).index == overlay
    # Without the resolvers the rows are again as they were: nothing of them is in the vocabulary.
    use(world)
    assert site_rules(world.runtime, site_of(world)).index.local_hash != overlay.local_hash
    remap(world.runtime, site_of(world))
    assert conditions(world) == before


def test_a_display_leaves_the_house_by_an_explicit_setting_alone(world, services):
    use(world, omophub(services, send_display=True, systems=[DX]), fhir(services))
    ask(world)
    codings = services.seen[0].body["codings"]
    assert {coding["display"] for coding in codings} == {"Said by Mrs Miller"}
    assert {coding["system"] for coding in codings} == {DX}
    assert not any(b"Miller" in one.raw for one in services.seen[1:])


@pytest.mark.requirement("f2o-110")
@pytest.mark.parametrize("version", ["R4", "R5"])
@pytest.mark.parametrize(
    ("relation", "broader", "status"),
    [
        ("equivalent", False, "exact"),
        ("equal", False, "exact"),
        ("wider", False, "suggestion"),
        ("wider", True, "exact"),
        ("subsumes", True, "exact"),
        ("source-is-narrower-than-target", True, "exact"),
        ("narrower", True, "suggestion"),
        ("source-is-broader-than-target", True, "suggestion"),
        ("relatedto", True, "suggestion"),
        ("unmatched", True, "suggestion"),
    ],
)
def test_relations_of_r4_and_r5(world, services, version, relation, broader, status):
    services.translations = {(DX, "exact"): [(relation, str(NAUSEA))]}
    use(world, fhir(services, fhir_version=version, broader=broader, systems=[DX]))
    ask(world)
    assert answers(world)[DX, "exact"] == ResolverAnswer(DX, "exact", status, ((NAUSEA, None),))
    names = {one["name"] for one in services.seen[0].body["parameter"]}
    assert names == ({"sourceCoding", "targetSystem"} if version == "R5" else {"coding", "targetsystem"})


def always(reply: Reply) -> Callable[[Seen], Reply]:
    return lambda _: reply


def with_body(change: Callable[[list[Any]], Any]) -> Callable[[Seen], Reply]:
    """OMOPHub's own results, changed."""

    def fault(seen: Seen) -> Reply:
        results = [{"input": coding, **resolution(coding["code"], NAUSEA)} for coding in seen.body["codings"]]
        return Reply(200, {"success": True, "data": {"results": change(results)}})

    return fault


FAULTS: dict[str, tuple[Callable[[Seen], Reply], str]] = {
    "not JSON": (always(Reply(200, b"<html>")), "not a JSON object"),
    "no results": (always(Reply(200, {"success": True, "data": {}})), "not one result"),
    "a result is missing": (with_body(lambda results: results[1:]), "not one result"),
    "other codings": (with_body(lambda results: results[::-1]), "other codings"),
    "a result says nothing": (with_body(lambda results: [{} for _ in results]), "neither a resolution nor"),
    "a refused key": (always(Reply(401, {"success": False})), "api_key_env"),
    "too large": (always(Reply(200, b"[" * (5 << 20))), "longer than"),
    "a release of no text": (always(Reply(200, {"data": [], "meta": {"vocab_release": {"a": 1}}})), "not one result"),
    "an error of no text": (with_body(lambda results: [{"error": {"code": [1]}}, {}, *results[2:]]), "neither a"),
    "an id of text": (
        with_body(lambda results: [{"resolution": {"standard_concept": {"concept_id": "1"}}}] * 6),
        "no concept",
    ),
    "an id of truth": (
        with_body(lambda results: [{"resolution": {"standard_concept": {"concept_id": True}}}] * 6),
        "no con",
    ),
    "truncated": (always(Reply(200, b'{"success": true, "data": {"resu')), "not a JSON object"),
    "a redirect": (always(Reply(307, b"", {"location": "http://127.0.0.1:9/"})), "answered 307"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_a_service_does_wrong_is_said_and_never_kept(world, services, name):
    fault, words = FAULTS[name]
    services.faults = [fault]
    (report,) = ask(world)
    assert words in (report.problem or "")
    assert KEY not in (report.problem or "")
    assert (report.unanswered, len(services.seen), answers(world)) == (6, 1, {})
    (report,) = ask(world)
    assert (report.unanswered, report.problem) == (0, None), "asked again by the next run"


def test_another_release_than_the_one_that_is_set_is_refused(world, services):
    for resolver in (omophub(services, release="2026.1"), fhir(services, release="2026.1", systems=[DX])):
        use(world, resolver)
        services.release = "2025.2"
        (report,) = ask(world)
        assert "'2025.2'" in (report.problem or "")
        assert not any(answer.status == "exact" for answer in answers(world).values())
    services.release = None
    (report,) = ask(world)
    assert "no release" in (report.problem or "")


def test_failures_inside_a_batch_are_asked_again(world, services):
    services.omophub[DX, "nowhere"] = {"error": {"code": "internal_error", "message": "x"}}
    (report,) = ask(world)
    assert (report.unanswered, report.unknown) == (1, 2)
    ask(world)
    assert services.seen[1].body == {"codings": [{"system": DX, "code": "nowhere"}]}


def refusing(code: str, status: int) -> Callable[[Seen], Reply | None]:
    """Refuses whatever asks about a code."""
    return lambda seen: Reply(status, {}) if f'"{code}"'.encode() in seen.raw else None


@pytest.mark.parametrize(("status", "asks"), [(400, 7), (422, 7), (413, 7)])
def test_a_code_that_a_batch_is_refused_for_stands_in_nobodys_way(world, services, status, asks):
    services.faults = [refusing("nowhere", status)] * 20
    (report,) = ask(world)
    assert (report.unanswered, report.exact) == (1, 2)
    assert str(status) in (report.problem or "")
    assert len(services.seen) <= asks
    services.faults = []
    assert [one.unanswered for one in ask(world)] == [0]


@pytest.mark.parametrize("status", [400, 404, 500])
def test_a_code_at_which_a_server_fails_stands_in_nobodys_way(world, services, status):
    for code in ("by-fhir", "exact", "nowhere"):
        shutil.rmtree(world.runtime.settings.home / "vocabulary" / "resolvers", ignore_errors=True)
        use(world, fhir(services))
        services.faults = [refusing(code, status)] * 30
        (report,) = ask(world)
        assert report.unanswered == 1
        assert str(status) in (report.problem or "")
    # Where nothing is answered, it is the service.
    shutil.rmtree(world.runtime.settings.home / "vocabulary" / "resolvers", ignore_errors=True)
    services.seen.clear()
    services.faults = [always(Reply(status, {}))] * 30
    (report,) = ask(world)
    assert report.unanswered == 6
    assert len({one.raw for one in services.seen}) == 3


def test_texts_that_mappings_make_codes_of_stay_in_the_house(world, services):
    with world.runtime.connect() as connection:
        made = connection.execute("SELECT count(*) FROM etl.unmapped_code WHERE system = 'payor'").fetchone()
    assert made == (1,), "the payer's name is looked up as a code"
    use(world, omophub(services), fhir(services, send_display=True))
    ask(world)
    assert services.seen
    assert not any(b"zeppelin" in one.raw.lower() for one in services.seen)


def test_systems_are_meant_however_they_are_written(world, services):
    resolver = omophub(services, systems=["urn:oid:2.16.840.1.113883.6.90", "https://hospital.example.org/other"])
    use(world, resolver)
    ask(world)
    assert [one["code"] for one in services.seen[0].body["codings"]] == ["ZZ9.99"]
    # What another site's entry asked the same service about is not laid over this one's.
    use(world, omophub(services))
    ask(world)
    everything = site_rules(world.runtime, site_of(world)).index.local_hash
    use(world, resolver)
    assert everything
    assert not site_rules(world.runtime, site_of(world)).index.local_hash


def test_answers_of_a_run_that_was_stopped_are_mapped_by_the_next(world, services):
    ask(world)  # `vocabulary resolve`, or a night that was killed before its remap
    services.seen.clear()
    night = resolve_and_remap(world.runtime, site_of(world))
    assert services.seen == []
    assert night.remapped is not None
    assert night.remapped.mapped == {"Condition": 2}
    assert {resource for resource, concept in conditions(world).items() if concept} == {"c1", "c6"}
    assert resolve_and_remap(world.runtime, site_of(world)).remapped is None
    use(world)
    remap(world.runtime, site_of(world))


@pytest.mark.parametrize("asked", ["999999999999999", "999999999999", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_a_time_that_no_calendar_has_ends_nothing(world, services, asked):
    services.faults = [always(Reply(429, {}, {"retry-after": asked}))]
    (report,) = ask(world)
    assert report.unanswered == 6
    assert "429" in (report.problem or "")
    assert resolve_and_remap(world.runtime, site_of(world)).remapped is None


def test_a_url_that_is_none_is_said(world, services):
    use(world, ResolverSettings(kind="fhir", url="http://127.0.0.1:port/fhir"))
    (report,) = ask(world)
    assert "none that can be asked" in (report.problem or "")


def test_a_secret_that_a_service_sends_back_is_not_kept(world, services):
    services.release = f"release of {KEY}"
    (report,) = ask(world)
    assert report.exact == 2
    assert KEY.encode() not in b"".join(kept(world).values())
    use(world, omophub(services, release="2026.1"))
    (report,) = ask(world)
    assert KEY not in (report.problem or "")


def test_a_service_that_does_not_answer_is_left_alone_for_a_while(world, services):
    clock = world.runtime.clock
    assert isinstance(clock, ManualClock)
    use(world, omophub(services, timeout_seconds=0.3))
    clock.slept.clear()
    services.faults = [always(Reply(429, {}, {"retry-after": "7"})), always(Reply(500, {}))]
    (report,) = ask(world)
    assert (report.unanswered, report.problem, clock.slept) == (0, None, [7.0, 2.0])

    def cleared() -> None:
        shutil.rmtree(world.runtime.settings.home / "vocabulary" / "resolvers")
        services.seen.clear()
        clock.slept.clear()

    cleared()
    started = time.monotonic()
    services.faults = [always(Reply(200, {}, after_seconds=3))] * 3
    (report,) = ask(world)
    assert time.monotonic() - started < 3, "hanging: the time-out of a request, thrice"
    assert (len(services.seen), report.unanswered) == (3, 6)
    assert "connection failed" in (report.problem or "")
    (report,) = ask(world)
    assert len(services.seen) == 3
    assert "left alone until" in (report.problem or "")
    night = resolve_and_remap(world.runtime, site_of(world))
    assert "6 codes have no answer yet" in night.sentences()[0]
    assert not any(conditions(world).values())
    (report,) = ask(world, despite_pause=True)
    assert (report.unanswered, report.problem) == (0, None)

    cleared()
    services.faults = [always(Reply(429, {}, {"retry-after": "7200"}))]
    (report,) = ask(world)
    assert (len(services.seen), clock.slept) == (1, [])
    clock.advance(7100)
    ask(world)
    assert len(services.seen) == 1
    clock.advance(200)
    (report,) = ask(world)
    assert report.unanswered == 0


def test_a_slow_service_is_given_a_time_and_keeps_what_it_said(world, services):
    use(world, fhir(services, most_seconds=20))
    services.faults = [lambda _: world.runtime.clock.sleep(9)] * 10  # type: ignore[union-attr]
    (report,) = ask(world)
    assert "most_seconds" in (report.problem or "")
    assert len(services.seen) < 6
    assert 0 < report.unanswered < 6
    world.runtime.clock.advance(4000)  # type: ignore[union-attr]
    services.faults = []
    (report,) = ask(world)
    assert report.unanswered == 0


@pytest.mark.requirement("f2o-111")
def test_answers_count_for_one_release_and_unknown_ones_for_a_while(world, services):
    clock = world.runtime.clock
    assert isinstance(clock, ManualClock)
    ask(world)
    services.seen.clear()
    clock.advance(29 * 86_400)
    ask(world)
    assert services.seen == []
    clock.advance(2 * 86_400)
    ask(world)
    assert {coding["code"] for coding in services.seen[0].body["codings"]} == {
        "semantic",
        "by-fhir",
        "nowhere",
        "ZZ9.99",
    }
    # The service has another release: what it said under the former one counts no longer, and is asked for again.
    services.release = "2026.1"
    clock.advance(31 * 86_400)
    services.seen.clear()
    ask(world)
    assert {coding["code"] for coding in services.seen[1].body["codings"]} == {"exact", "not-held"}
    # Another vocabulary release is active: nothing that was said before is read.
    home, resolver = world.runtime.settings.home, site_of(world).resolvers[0]
    cache = AnswerCache(home, resolver, "another release")
    assert cache.known(clock.now()) == {}
    assert [code.code for code in cache.former()] == ["exact", "not-held"]
    cache.put([ResolverAnswer(DX, "exact", "none")], "2026.1", clock.now(), clock.now() + timedelta(days=1))
    assert [code.code for code in AnswerCache(home, resolver, "another release").former()] == ["not-held"]
    assert set(answers(world)) == CODES, "those of the first release are there for whoever goes back to it"


def test_the_local_map_and_the_release_come_before_resolvers(world, services):
    services.omophub[DX, "nowhere"] = resolution("nowhere", NAUSEA)
    with world.runtime.connect() as connection:
        connection.execute(
            "INSERT INTO etl.local_map (source_system, source_code, target_concept_id, status)"
            " VALUES (%s, 'exact', 0, 'approved')",
            (DX,),
        )
    try:
        # Once a resolver had a concept for a code that the release of today has as well, written otherwise.
        former = AnswerCache(world.runtime.settings.home, site_of(world).resolvers[0], "a former release")
        now = world.runtime.clock.now()
        former.put([ResolverAnswer(ICD, "i10", "exact", ((NAUSEA, None),))], "2024.1", now, now)
        night = resolve_and_remap(world.runtime, site_of(world))
        asked = {coding["code"] for coding in services.seen[0].body["codings"]}
        assert asked == {code for _, code in CODES} - {"exact"}
        assert night.remapped is not None
        assert {resource for resource, concept in conditions(world).items() if concept} == {"c5"}
    finally:
        with world.runtime.connect() as connection:
            connection.execute("TRUNCATE etl.local_map")


def test_the_command(world, services, tmp_path: Path):
    home, url = world.runtime.settings.home, world.runtime.settings.database_url
    key = tmp_path / "key"
    key.write_text(f"{KEY}\n")
    key.chmod(0o600)
    resolvers = [{"kind": "omophub", "url": services.omophub_url, "api_key_file": str(key)}]
    (home / "sites.yaml").write_text(json.dumps({"sites": {"one": {"test_mode": True, "resolvers": resolvers}}}))
    terminal = CommandLine(home, url)
    try:
        shown = terminal.run("vocabulary", "resolve", "--dry-run").out
        assert services.seen == []
        assert "to ask" in shown
        assert "2" in terminal.run("vocabulary", "resolve", "--site", "one").out
        assert services.seen[0].headers["authorization"] == f"Bearer {KEY}"
        services.seen.clear()
        terminal.run("vocabulary", "resolve")
        assert services.seen == []
        shutil.rmtree(home / "vocabulary" / "resolvers")
        services.faults = [always(Reply(401, {}))]
        assert "api_key_file" in terminal.run("vocabulary", "resolve", code=75).err
        assert "no site" in terminal.run("vocabulary", "resolve", "--site", "two", code=2).err
        key.chmod(0o644)
        assert "chmod 600" in terminal.run("vocabulary", "resolve", code=75).err
        resolvers[0]["url"] = "http://user@example.org"
        (home / "sites.yaml").write_text(json.dumps({"sites": {"one": {"test_mode": True, "resolvers": resolvers}}}))
        assert "resolvers.0: url is not a base URL" in terminal.run("vocabulary", "resolve", code=2).err
    finally:
        (home / "sites.yaml").unlink()
