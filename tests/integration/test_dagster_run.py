"""The whole route through Dagster's own jobs and sensor: simulated Epic → kick-off → ingest → PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import orjson
import pytest
from cronsim import CronSim
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from pipeline.commands import status
from pipeline.core.resolver_settings import ResolverSettings
from pipeline.core.settings import Settings, SiteSettings
from pipeline.extract import bulk
from pipeline.extract.bulk import ingest_folder
from pipeline.operations.site_status import site_statuses
from pipeline.orchestration import site_assets
from pipeline.orchestration.asset_checks import accounting_check
from pipeline.orchestration.definitions import build_definitions
from pipeline.orchestration.jobs import DUE_TAG
from pipeline.orchestration.nightly import run_nightly
from pipeline.orchestration.partitions import day_of
from pipeline.orchestration.sensors import poll_open_exports
from pipeline.sandbox.config import RegisteredClient, SandboxConfig
from pipeline.sandbox.faults import ResponseFault
from pipeline.sandbox.server import RunningSandbox
from pipeline.sandbox.sources import GeneratedSource
from pipeline.warehouse import export_jobs
from pipeline.warehouse.export_jobs import ExportJob
from pipeline.warehouse.next_kick_offs import next_kick_offs
from pipeline.warehouse.runtime import Runtime
from tests.databases import Prepared
from tests.integration.support import observation, patient
from tests.terminology_services import Reply, resolution, running_services

PATIENTS = 5
#: Dagster writes every event to the terminal too.
QUIET: dict[str, Any] = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
TYPES = ("Patient", "Encounter", "Condition", "Observation", "Practitioner", "Organization", "Location")
KEY = ec.generate_private_key(ec.SECP384R1())
PUBLIC = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


class ShiftedClock:
    """The real time some days ago, and what was slept: waiting costs nothing.

    Days ago, because Dagster has partitions up to the real today, and the tests move on by days.
    """

    def __init__(self) -> None:
        self.shift = timedelta(days=-5)

    def now(self) -> datetime:
        return datetime.now(UTC) + self.shift

    def sleep(self, seconds: float) -> None:
        self.shift += timedelta(seconds=seconds)


@dataclass
class World:
    sandbox: RunningSandbox
    clock: ShiftedClock
    runtime: Runtime
    site: SiteSettings
    instance: dg.DagsterInstance
    runs: list[str] = field(default_factory=list)

    @property
    def definitions(self) -> dg.Definitions:
        return build_definitions(self.runtime.settings, {"runtime": self.runtime})

    @property
    def today(self) -> str:
        return day_of(self.site, self.clock.now())

    def with_site(self, **changes: Any) -> World:
        site = self.site.model_copy(update=changes)
        settings = self.runtime.settings.model_copy(update={"sites": {site.name: site}})
        return replace(self, site=site, runtime=Runtime(settings, self.clock))

    def kick_off(self, tags: Mapping[str, str] | None = None) -> dg.ExecuteInProcessResult:
        job = self.definitions.resolve_job_def(f"{self.site.name}__kick_off")
        return job.execute_in_process(
            run_config=QUIET, instance=self.instance, tags=dict(tags or {}), raise_on_error=False
        )

    def tick(self) -> dg.SensorResult:
        """One evaluation of the sensor, as the daemon makes it."""
        sensor = self.definitions.resolve_sensor_def(f"{self.site.name}__exports")
        context = dg.build_sensor_context(self.instance, resources={"runtime": self.runtime}, sensor_name=sensor.name)
        result = sensor(context)
        assert isinstance(result, dg.SensorResult)
        return result

    def ingest(self, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
        """The requested run."""
        job = self.definitions.resolve_job_def(f"{self.site.name}__ingest")
        return job.execute_in_process(
            run_config=QUIET,
            instance=self.instance,
            partition_key=request.partition_key,
            tags=dict(request.tags),
            raise_on_error=False,
        )

    def materialize(self, *names: str, day: str, tags: dict[str, str] | None = None) -> dg.ExecuteInProcessResult:
        """What a person does in the UI: materialize assets of a day."""
        selection = [dg.AssetKey([self.site.name, name]) for name in names]
        job = self.definitions.resolve_implicit_job_def_def_for_assets(selection)
        assert job is not None
        return job.execute_in_process(
            run_config=QUIET,
            instance=self.instance,
            partition_key=day,
            asset_selection=selection,
            tags=tags,
            raise_on_error=False,
        )

    def jobs(self) -> list[ExportJob]:
        with self.runtime.connect() as connection:
            return export_jobs.list_jobs(connection, self.site.name)

    def count(self, table: str) -> int:
        with self.runtime.connect() as connection:
            row = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
        assert row is not None
        return int(row[0])

    def metadata(self, result: dg.ExecuteInProcessResult, name: str) -> dict[str, Any]:
        """Of the materialization of one of the site's assets in a run."""
        key = dg.AssetKey([self.site.name, name])
        (event,) = [one for one in result.get_asset_materialization_events() if one.asset_key == key]
        return {key: entry.value for key, entry in event.materialization.metadata.items()}

    def ready(self) -> dg.RunRequest:
        """The request of the only export, after as many evaluations as it takes."""
        for _ in range(5):
            result = self.tick()
            if result.run_requests:
                (request,) = result.run_requests
                return request
            self.clock.sleep(120)
        raise AssertionError(result.skip_reason)


def failure(result: dg.ExecuteInProcessResult) -> str:
    assert not result.success
    (event,) = [event for event in result.all_events if event.is_step_failure]
    assert event.step_failure_data.user_failure_data is not None
    return event.step_failure_data.user_failure_data.description or ""


@pytest.fixture(scope="module")
def installed(demo_warehouse: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A database with the schemas and the demonstration vocabulary, and the home that holds its index."""
    home = tmp_path_factory.mktemp("home")
    with demo_warehouse.copy(home) as url:
        yield url, home


@pytest.fixture
def world(tmp_path: Path, installed: tuple[str, Path], request: pytest.FixtureRequest) -> Iterator[World]:
    """A parameter holds changes of the SandboxConfig."""
    url, home = installed
    key = tmp_path / "key.pem"
    key.touch(mode=0o600)
    key.write_bytes(KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    clock = ShiftedClock()
    config = SandboxConfig(
        groups={"group-a": GeneratedSource(PATIENTS, seed=7)},
        clients=(RegisteredClient("client-1", (PUBLIC,)),),
        clock=clock,
        **getattr(request, "param", {}),
    )
    with RunningSandbox(config) as sandbox, dg.DagsterInstance.ephemeral() as instance:
        site = SiteSettings(
            name="site_a",
            fhir_url=sandbox.fhir_url,
            client_id="client-1",
            private_key_file=key,
            groups=("group-a",),
            resource_types=TYPES,
            poll_floor_seconds=60,
            time_zone="America/Chicago",
            test_mode=True,
        )
        settings = Settings(home=home, database_url=url, sites={"site_a": site})
        runtime = Runtime(settings, clock)
        _empty(runtime)
        yield World(sandbox, clock, runtime, site, instance)


def _empty(runtime: Runtime) -> None:
    with runtime.connect() as connection:
        tables = connection.execute(
            "SELECT string_agg(format('%I.%I', schemaname, tablename), ', ') FROM pg_tables"
            " WHERE schemaname IN ('cdm', 'etl') AND tablename NOT IN ('alembic_version', 'vocabulary_release', 'access_log',"
            " 'access_link', 'access_head')"
        ).fetchone()
        assert tables is not None
        connection.execute(f"TRUNCATE {tables[0]} CASCADE")


def values_of(value: object) -> Iterator[str]:
    """Every string in a JSON document."""
    if isinstance(value, dict):
        for one in value.values():
            yield from values_of(one)
    elif isinstance(value, list):
        for one in value:
            yield from values_of(one)
    elif isinstance(value, str):
        yield value


def patient_data(world: World) -> set[str]:
    """What must be seen nowhere: ids of all resources; names, numbers, dates and addresses of the patients."""
    found: set[str] = set()
    source = world.sandbox.state.config.groups["group-a"]
    for kind, line in source.lines(TYPES, date(2026, 1, 1), 0):
        try:
            resource = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if isinstance(resource.get("id"), str):
            found.add(resource["id"])
        if kind == "Patient":
            parts = ("name", "identifier", "telecom", "address", "birthDate")
            found |= {text for part in parts for text in values_of(resource.get(part))}
    public = {"official", "usual", "home", "work", "mobile", "phone", "email", "old", "both", "US", "temp", "nickname"}
    return {text for text in found - public if len(text) > 3 and not text.startswith(("urn:oid:", "http"))}


def stored_events(world: World) -> str:
    """Everything that the Dagster instance keeps of all runs."""
    runs = world.instance.get_runs()
    events = [entry.to_json() for run in runs for entry in world.instance.all_logs(run.run_id)]
    return "\n".join([*events, *(str(run.tags) for run in runs)])


def test_from_kick_off_to_rows(world: World) -> None:
    assert world.kick_off().success
    (job,) = world.jobs()
    assert job.state == "running"
    first = world.tick()
    assert not first.run_requests
    assert "is running; asked again at" in str(first.skip_reason)
    request = world.ready()
    assert (request.run_key, request.partition_key) == (f"{job.export_id}:1", day_of(world.site, job.requested_at))
    result = world.ingest(request)
    assert result.success
    assert world.jobs()[0].state == "published"
    assert world.count("person") > 0
    done = world.tick()
    assert not done.run_requests
    assert done.skip_reason == dg.SkipReason("Site site_a has no open export.")
    _the_metadata_is_right(world, result)
    assert ("accounting", True) in {(check.check_name, check.passed) for check in result.get_asset_check_evaluations()}
    stored = stored_events(world)
    assert "mapping rates" in stored
    data = patient_data(world)
    assert len(data) > 100
    assert [text for text in data if text in stored] == []


def _the_metadata_is_right(world: World, result: dg.ExecuteInProcessResult) -> None:
    landing, load = world.metadata(result, "landing"), world.metadata(result, "load")
    lines = sum(file.lines for file in world.runtime.landing.open("site_a", world.jobs()[0].export_id).files)
    assert landing["dagster/partition_row_count"] == load["lines"] == lines
    assert sum(load[f"lines {name}"] for name in ("loaded", "unchanged", "superseded", "excluded", "rejected")) == lines
    assert load["open dead letters, all sites"] == world.count("dead_letter_open")
    assert 0 < load["mapped %"] <= 100
    tables = {
        event.asset_key.path[1]: event.materialization.metadata["dagster/row_count"].value
        for event in result.get_asset_materialization_events()
        if event.asset_key and event.asset_key.path[0] == "cdm"
    }
    assert tables["person"] == world.count("person")
    assert tables["measurement"] == world.count("measurement")


def test_the_next_night_finds_nearly_everything_unchanged(world: World) -> None:
    progress: list[str] = []
    first = run_nightly(world.runtime, "site_a", world.instance, progress.append)
    assert (first.success, first.problems, len(first.ingest_run_ids)) == (True, [], 1)
    assert any("is running" in text for text in progress)
    assert [world.instance.get_run_by_id(run).is_success for run in first.run_ids] == [True, True]  # type: ignore[union-attr]
    world.clock.sleep(25 * 3600)
    second = run_nightly(world.runtime, "site_a", world.instance, progress.append)
    assert second.success
    assert second.export_ids != first.export_ids
    with world.runtime.connect() as connection:
        row = connection.execute(
            "SELECT sum(unchanged)::int, sum(lines)::int FROM file_account WHERE export_id = %s", second.export_ids
        ).fetchone()
    assert row is not None
    assert row[0] > 0.8 * row[1]


def test_a_night_asks_the_resolvers_of_its_site_and_never_waits_for_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESOLVER_KEY", "k")
    with running_services() as services:
        resolver = ResolverSettings(kind="omophub", url=services.omophub_url, api_key_env="RESOLVER_KEY")
        world = world.with_site(resolvers=(resolver,))
        services.faults = [lambda _: Reply(500, {})] * 100
        first = run_nightly(world.runtime, "site_a", world.instance, lambda _: None)
        assert (first.success, first.problems) == (True, [])
        assert len(services.seen) == 3
        assert "have no answer yet" in stored_events(world)
        assert world.count("condition_occurrence WHERE condition_concept_id = 31967") == 0
        with world.runtime.connect() as connection:
            row = connection.execute(
                "SELECT system, code FROM unmapped_code WHERE resource_type = 'Condition' AND element = 'code'"
                " AND system IS NOT NULL AND code IS NOT NULL ORDER BY count DESC, 1, 2"
            ).fetchone()
        assert row is not None
        services.omophub[row] = resolution(row[1], 31967)
        services.faults, services.release = [], None
        world.clock.sleep(25 * 3600)
        second = run_nightly(world.runtime, "site_a", world.instance, lambda _: None)
        assert (second.success, second.problems) == (True, [])
        assert world.count("condition_occurrence WHERE condition_concept_id = 31967") > 0
        services.seen.clear()
        world.clock.sleep(25 * 3600)
        assert run_nightly(world.runtime, "site_a", world.instance, lambda _: None).success
        assert sum(len(one.body["codings"]) for one in services.seen) < 100, "new codes alone"


def test_a_cool_down_is_skipped_with_the_time_of_the_next_try(world: World) -> None:
    assert run_nightly(world.runtime, "site_a", world.instance, lambda _: None).success
    again = run_nightly(world.runtime, "site_a", world.instance, lambda _: None)
    assert (again.success, again.problems, again.ingest_run_ids) == (True, [], [])
    assert again.next_try is not None
    assert timedelta(hours=22) < again.next_try - world.clock.now() < timedelta(hours=25)
    by_hand = world.with_site(groups=("group-a",)).materialize("landing", "load", day=world.today)
    assert by_hand.success, "there is an export of today: nothing is kicked off"
    assert len([job for job in world.jobs() if job.state != "skipped"]) == 1


# --- a night that is not lost: the sensor requests what was refused for now


def at_night(world: World, instant: datetime) -> None:
    world.clock.shift = instant - datetime.now(UTC)


def requested_then(world: World, instant: datetime) -> dg.RunRequest:
    """The kick-off that the sensor requests at an instant, and not a minute before; the group is exported by it."""
    at_night(world, instant - timedelta(minutes=1))
    before = world.tick()
    assert not before.run_requests
    assert f"is kicked off again at {instant:%Y-%m-%d %H:%M} UTC" in str(before.skip_reason)
    at_night(world, instant + timedelta(seconds=1))
    (request,) = world.tick().run_requests or []
    (again,) = world.tick().run_requests or []
    assert request.run_key == again.run_key, "the daemon requests it once"
    assert (request.job_name, request.partition_key) == ("site_a__kick_off", None)
    assert world.kick_off(request.tags).success
    assert world.jobs()[0].state == "running"
    assert [one.job_name for one in world.tick().run_requests or []] != ["site_a__kick_off"]
    return request


def next_try(world: World) -> datetime:
    with world.runtime.connect() as connection:
        (entry,) = next_kick_offs(connection, world.site)
    return entry.next_try


def published(world: World) -> None:
    with world.runtime.connect() as connection:
        connection.execute("UPDATE export_job SET state = 'published' WHERE state = 'running'")


def test_the_night_after_the_spring_change_of_the_clocks(world: World) -> None:
    """Of two nights by the site's schedule, 23 hours lie between the kick-offs: Epic refuses the second one."""
    nights = CronSim(world.site.schedule, datetime(2026, 3, 7, 12, tzinfo=world.site.zone))
    first, second = (night.astimezone(UTC) for night in (next(nights), next(nights)))
    assert second - first == timedelta(hours=23)
    at_night(world, first)
    assert world.kick_off().success
    published(world)
    at_night(world, second)
    assert world.kick_off().success
    assert world.jobs()[0].state == "skipped"
    due = next_try(world)
    assert timedelta(minutes=60) < due - second < timedelta(minutes=65)
    with world.runtime.connect() as connection:
        (found,) = site_statuses(connection, world.runtime, None)
        assert "kick-off again" in " ".join(status._waiting(found))
    requested_then(world, due)
    assert len([job for job in world.jobs() if job.status_url]) == 2


def test_the_night_after_a_run_by_hand(world: World) -> None:
    evening = datetime(2026, 5, 4, 23, 30, tzinfo=UTC)
    at_night(world, evening)
    assert bulk.open_or_adopt(world.runtime, world.site, "group-a").state == "running"
    published(world)
    at_night(world, datetime(2026, 5, 5, 6, tzinfo=UTC))
    assert world.kick_off().success
    due = next_try(world)
    assert timedelta(hours=24) < due - evening < timedelta(hours=24, minutes=5)
    requested_then(world, due)


@pytest.mark.parametrize(
    "world",
    [
        {"faults": (ResponseFault(at="token", status=503, times=12),)},
        {"faults": (ResponseFault(at="kick-off", status=502, times=2),)},
    ],
    indirect=True,
    ids=["token endpoint down", "gateway down"],
)
def test_a_night_whose_kick_off_fails_for_a_passing_reason(world: World) -> None:
    night = datetime(2026, 5, 5, 6, tzinfo=UTC)
    at_night(world, night)
    for minutes in (10, 20):
        now = world.clock.now()
        assert world.kick_off({} if minutes == 10 else {DUE_TAG: "yes"}).success, "it is tried again, no failure yet"
        assert world.jobs()[0].state == "failed"
        due = next_try(world)
        assert timedelta(0) <= due - now - timedelta(minutes=minutes) < timedelta(minutes=5)
        at_night(world, due + timedelta(seconds=1))
    (request,) = world.tick().run_requests or []
    assert world.kick_off(request.tags).success
    assert world.jobs()[0].state == "running"
    assert day_of(world.site, world.jobs()[0].requested_at) == day_of(world.site, night), "the night is not lost"


def test_a_group_that_rests_is_skipped_by_hand_too(world: World) -> None:
    assert run_nightly(world.runtime, "site_a", world.instance, lambda _: None).success
    with world.runtime.connect() as connection:
        connection.execute("UPDATE export_job SET state = 'failed'")
    result = world.materialize("landing", "load", day=world.today)
    assert result.success
    assert result.get_asset_materialization_events() == []
    (event,) = result.get_asset_observation_events()
    metadata = event.asset_observation_data.asset_observation.metadata
    assert metadata["skipped groups"].value == 1
    assert metadata["next try"].value > world.clock.now().timestamp()


def test_a_day_is_mapped_again_by_hand(world: World) -> None:
    assert run_nightly(world.runtime, "site_a", world.instance, lambda _: None).success
    before = {table: world.count(table) for table in ("person", "measurement", "condition_occurrence")}
    result = world.materialize("load", day=world.today)
    assert result.success
    metadata = world.metadata(result, "load")
    assert metadata["lines unchanged"] == 0, "every line is mapped again"
    assert metadata["rows inserted"] > 0
    assert {table: world.count(table) for table in before} == before
    assert accounting_check(world.site)(runtime=world.runtime).passed


def test_todays_partition_of_a_simulated_site_is_made_in_one_run(world: World) -> None:
    result = world.materialize("landing", "load", day=world.today)
    assert result.success
    assert world.metadata(result, "load")["rows inserted"] > 0
    assert world.jobs()[0].state == "published"


@pytest.mark.parametrize("world", [{"polls_until_complete": 10_000}], indirect=True)
def test_an_export_that_takes_long_is_left_to_the_sensor(world: World) -> None:
    started = world.clock.now()
    result = world.materialize("landing", "load", day=world.today)
    assert "Export 1 is running at the site" in failure(result).replace(str(world.jobs()[0].export_id), "1")
    assert "The sensor ingests it when it is ready" in failure(result)
    assert world.clock.now() - started < timedelta(minutes=3), "nothing waits for hours in a worker"
    assert world.jobs()[0].state == "running"
    assert result.get_asset_materialization_events() == []


def test_a_day_without_exports_is_an_empty_success(world: World) -> None:
    went_live = (world.clock.now() - timedelta(days=60)).date()
    older = world.with_site(go_live_date=went_live)
    result = older.materialize("landing", "load", day=day_of(world.site, world.clock.now() - timedelta(days=30)))
    assert result.success
    assert result.get_asset_materialization_events(), "the day counts as done"
    assert world.jobs() == [], "a past day kicks nothing off"


def test_yesterdays_open_export_is_not_todays(world: World) -> None:
    assert world.kick_off().success
    world.clock.sleep(24 * 3600)
    assert "belongs to the partition" in failure(world.materialize("landing", "load", day=world.today))


@pytest.fixture(autouse=True)
def retries_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_assets, "RETRIES", dg.RetryPolicy(max_retries=2, delay=0))


#: Ends the connection of the first publication in the middle of it. Numbers of a sequence are not taken back.
_END_ONCE = """
CREATE SEQUENCE ended;
CREATE FUNCTION end_once() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF nextval('{etl}.ended') = 1 THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER end_once BEFORE INSERT ON publication FOR EACH ROW EXECUTE FUNCTION end_once()
"""


def test_a_load_that_meets_a_passing_failure_is_tried_again_in_its_run(world: World) -> None:
    assert world.kick_off().success
    request = world.ready()
    with world.runtime.connect() as connection:
        connection.execute(_END_ONCE.format(etl=world.runtime.settings.etl_schema).encode())
    result = world.ingest(request)
    assert result.success
    retries = [event for event in result.all_events if event.event_type == dg.DagsterEventType.STEP_UP_FOR_RETRY]
    assert len(retries) == 1
    (job,) = world.jobs()
    assert (job.state, job.attempt) == ("published", 1), "no further run is needed"


def test_an_export_by_form(world: World) -> None:
    """Some types of some groups; what is wrong in the form is named, and asks for nothing."""
    op = "site_a__kick_off_groups"

    def submit(**form: Any) -> dg.ExecuteInProcessResult:
        job = world.definitions.resolve_job_def("site_a__kick_off")
        config = {**QUIET, "ops": {op: {"config": form}}}
        return job.execute_in_process(run_config=config, instance=world.instance, raise_on_error=False)

    for form, words in (
        ({"groups": ["nobody"]}, "no group 'nobody'"),
        ({"resource_types": ["Patiant"]}, "Did you mean 'Patient'?"),
        ({"since": "yesterday"}, "since: 'yesterday' is not a time"),
        ({"since": "2026-03-01T04:00"}, "not configured to know `_since`"),
    ):
        assert words in failure(submit(**form))
    assert world.jobs() == []
    since = world.with_site(supports_since=True)
    job = since.definitions.resolve_job_def("site_a__kick_off")
    form = {"groups": ["group-a"], "resource_types": ["Patient", "Condition"], "since": "2026-03-01T04:00-05:00"}
    config = {**QUIET, "ops": {op: {"config": form}}}
    assert job.execute_in_process(run_config=config, instance=world.instance).success
    (export,) = world.jobs()
    assert list(export.resource_types) == ["Patient", "Condition"]
    assert export.since == datetime(2026, 3, 1, 9, tzinfo=UTC)
    assert world.kick_off().success, "the night adopts it"
    assert len(world.jobs()) == 1


def test_a_passing_failure_gets_a_new_attempt_later(world: World) -> None:
    assert world.kick_off().success
    request = world.ready()
    deaf = world.with_site(fhir_url="http://127.0.0.1:9/api")
    with (
        deaf.runtime.connect() as connection,
        export_jobs.site_lock(connection, "site_a", export_jobs.SiteWork.EXPORT, world.jobs()[0].export_id),
    ):
        assert "Another process is working" in failure(world.ingest(request))
    assert not world.tick().run_requests, "not at once"
    world.clock.sleep(11 * 60)
    second = world.ready()
    assert second.run_key == f"{world.jobs()[0].export_id}:2"
    assert world.ingest(second).success


def test_what_waits_for_a_person_is_tried_again_by_the_next_kick_off(world: World, tmp_path: Path) -> None:
    (tmp_path / "mappings").mkdir()
    (tmp_path / "mappings" / "Patient.yaml").write_text("resource: [")
    settings = world.runtime.settings.model_copy(update={"mappings": tmp_path / "mappings"})
    broken = replace(world, runtime=Runtime(settings, world.clock))
    assert broken.kick_off().success
    request = broken.ready()
    assert "Patient.yaml" in failure(broken.ingest(request))
    assert (world.jobs()[0].state, world.tick().run_requests[0].run_key) == ("landed", request.run_key)  # type: ignore[index]
    assert world.kick_off().success, "the mapping is repaired; the night adopts the export"
    second = world.ready()
    assert second.run_key == f"{world.jobs()[0].export_id}:2"
    assert world.ingest(second).success


def test_a_refused_client_is_asked_for_rarely(world: World) -> None:
    assert world.kick_off().success
    world.clock.sleep(120)
    wrong = world.with_site(client_id="not-registered")
    polled = poll_open_exports(wrong.runtime, wrong.site)
    assert polled.errors
    assert not polled.requests
    (job,) = world.jobs()
    assert job.is_open
    assert job.next_poll_at is not None
    assert job.next_poll_at - world.clock.now() > timedelta(minutes=50)
    assert not poll_open_exports(wrong.runtime, wrong.site).errors, "not asked again at the next evaluation"


def test_a_run_is_not_requested_twice_and_a_published_export_is_not_loaded_twice(world: World) -> None:
    assert world.kick_off().success
    request = world.ready()
    assert world.tick().run_requests[0].run_key == request.run_key, "the daemon drops a run key that it knows"  # type: ignore[index]
    assert world.ingest(request).success
    before = world.count("publication")
    assert world.ingest(request).success
    assert world.count("publication") == before
    assert world.metadata(world.ingest(request), "load")["lines unchanged"] == 0, "the account is still the first one's"


def test_lines_that_do_not_add_up_fail_the_check(world: World) -> None:
    assert run_nightly(world.runtime, "site_a", world.instance, lambda _: None).success
    check = accounting_check(world.site)
    assert check(runtime=world.runtime).passed
    with world.runtime.connect() as connection:
        connection.execute("UPDATE export_file SET loaded = loaded + 1 WHERE file_number = 1")
    result = check(runtime=world.runtime)
    assert not result.passed
    wrong = [record.data for record in result.metadata["files that do not add up"].records]
    assert wrong
    assert all(record["outcomes"] == record["lines"] + 1 for record in wrong)


def test_much_is_deleted_only_by_a_run_with_the_tag(world: World, tmp_path: Path) -> None:
    place = world.with_site(vanished="delete")

    def land_and_load(observations: int, tags: dict[str, str] | None = None) -> dg.ExecuteInProcessResult:
        place.clock.sleep(24 * 3600)
        folder = tmp_path / f"{observations}"
        folder.mkdir()
        lines = [observation(f"o{number}") for number in range(observations)]
        for kind, resources in (("Patient", [patient()]), ("Observation", lines)):
            content = b"".join(orjson.dumps({"resourceType": kind, **resource}) + b"\n" for resource in resources)
            (folder / f"{kind}.ndjson").write_bytes(content)
        ingest_folder(place.runtime, "site_a", folder, group="group-a", complete=True)
        return place.materialize("load", day=place.today, tags=tags)

    assert land_and_load(30).success
    refused = land_and_load(19, {"epic_omop/confirm": "no"})
    assert "no longer holds 11 of 30 Observation (36.7%)" in failure(refused)
    assert "run it again with the tag epic_omop/confirm: yes" in failure(refused)
    assert (place.count("measurement"), place.jobs()[0].state) == (30, "landed")
    confirmed = place.materialize("load", day=place.today, tags={"epic_omop/confirm": "yes"})
    assert confirmed.success
    assert (place.count("measurement"), place.jobs()[0].state) == (19, "published")
