"""Alerts from rows of `etl` to real receivers: each once to every channel, with its recovery, whatever the receivers do."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from omop_schema.exports import ExportKind, ExportState
from pipeline.core.clock import ManualClock
from pipeline.core.errors import ConfigurationError, EpicOmopError, PermanentError, RemoteUnavailable
from pipeline.core.settings import Settings, SiteSettings
from pipeline.operations.alerts.circumstances import DagsterState
from pipeline.operations.alerts.rules import current_conditions
from pipeline.operations.alerts.run import AlertsReport, run_alerts, try_channels
from pipeline.quality.checks.model import Finding, Rule, Severity
from pipeline.quality.checks.recording import record as record_checks
from pipeline.warehouse.runtime import Runtime
from tests.alert_receivers import (
    PASSWORD,
    USER,
    Webhook,
    certificate,
    closed_port,
    hanging_port,
    running_mails,
    running_webhook,
)
from tests.command_line import CommandLine, killed
from tests.databases import Prepared

#: 06:00 in Chicago, 17:30 in Kolkata: 3.5 and 16.5 hours after the nights.
NOW = datetime(2026, 3, 10, 11, 0, tzinfo=UTC)
_SITE = {"fhir_url": "https://epic.example/FHIR", "client_id": "c", "private_key_env": "KEY"}
NORTH = SiteSettings(name="north", groups=("g1", "g2"), time_zone="America/Chicago", schedule="30 2 * * *", **_SITE)
SOUTH = SiteSettings(name="south", groups=("g3",), time_zone="Asia/Kolkata", schedule="0 1 * * *", **_SITE)
SITES = {"north": NORTH, "south": SOUTH}
HOUR = timedelta(hours=1)

PUBLISHED, FAILED, RUNNING, LANDED = (
    ExportState.PUBLISHED,
    ExportState.FAILED,
    ExportState.RUNNING,
    ExportState.LANDED,
)


@pytest.fixture(scope="module")
def url(demo_warehouse: Prepared) -> Iterator[str]:
    with demo_warehouse.copy() as made:
        yield made


@dataclass
class Place:
    """A home with settings of alerts, and a connection whose changes the next test does not see."""

    runtime: Runtime
    url: str
    webhook: Webhook
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        return self.runtime.settings.home

    @property
    def clock(self) -> ManualClock:
        assert isinstance(self.runtime.clock, ManualClock)
        return self.runtime.clock

    def write(self, channels: Sequence[dict[str, Any]], **alerts: Any) -> None:
        text = yaml.safe_dump({"alerts": {"channels": list(channels), **alerts}})
        (self.home / "operations.yaml").write_text(text)

    def export(
        self,
        site: str,
        group: str,
        state: ExportState,
        requested: timedelta,
        *,
        takes: timedelta = HOUR,
        lines: tuple[int, int] | None = None,
        **columns: Any,
    ) -> int:
        """An export that was asked for so long ago. `lines`: of its file, and how many of these were rejected."""
        at = self.clock.now() - requested
        values: dict[str, Any] = {
            "site": site,
            "group_id": group,
            "kind": ExportKind.BULK,
            "state": state,
            "requested_at": at,
            **columns,
        }
        if state == PUBLISHED:
            values |= {"complete_since": at + takes, "landed_at": at + takes, "published_at": at + takes}
        names, holders = ", ".join(values), ", ".join(["%s"] * len(values))
        with self.runtime.connect() as connection:
            row = connection.execute(
                f"INSERT INTO export_job ({names}) VALUES ({holders}) RETURNING export_id", list(values.values())
            ).fetchone()
            assert row
            if lines is not None:
                connection.execute(
                    "INSERT INTO export_file (export_id, file_number, resource_type, file, lines, rejected)"
                    " VALUES (%s, 1, 'Patient', 'f', %s, %s)",
                    (row[0], *lines),
                )
        return int(row[0])

    def nights(self, site: str, group: str, count: int, *, rejected: int = 3, since: timedelta = timedelta()) -> None:
        """So many good nights up to the last one."""
        for night in range(count, 0, -1):
            hours = 3 * HOUR + since + (night - 1) * 24 * HOUR
            self.export(site, group, PUBLISHED, hours, lines=(1000, rejected + night % 3))

    def sql(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with self.runtime.connect() as connection:
            cursor = connection.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

    def conditions(self, state: DagsterState | None = None) -> set[tuple[str, str | None]]:
        with self.runtime.connect() as connection:
            return {(one.kind, one.site) for one in current_conditions(connection, self.runtime, lambda: state)}

    def run(self) -> AlertsReport:
        return run_alerts(self.runtime)

    def events(self) -> list[tuple[str, str | None]]:
        """(event, site) of what the webhook was given, in the project's own form."""
        return [(body["event"], body["site"]) for _, _, body in self.webhook.seen if body]

    @property
    def terminal(self) -> CommandLine:
        (self.home / "sites.yaml").write_text(
            yaml.safe_dump(
                {
                    "sites": {
                        name: site.model_dump(include={*_SITE, "groups", "time_zone", "schedule"}, mode="json")
                        for name, site in SITES.items()
                    }
                }
            )
        )
        return CommandLine(self.home, self.url, self.variables)


HOOK = {"kind": "webhook", "name": "hook", "url_env": "HOOK", "format": "json"}


@pytest.fixture
def place(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    home = tmp_path / "home"
    home.mkdir()
    with running_webhook() as webhook:
        made = Place(Runtime(Settings(home=home, database_url=url, sites=SITES), ManualClock(NOW)), url, webhook)
        made.variables["HOOK"] = webhook.url()
        monkeypatch.setenv("HOOK", webhook.url())
        made.write([HOOK])
        made.sql(
            "TRUNCATE export_job, export_file, coverage, run_failure, disk_sample, alert, alert_message, alert_delivery,"
            " next_kick_off, check_result"
        )
        yield made


def well(place: Place, *, at: timedelta = timedelta()) -> None:
    for site in SITES.values():
        for group in site.groups:
            place.nights(site.name, group, 7, since=at)


# ---------------------------------------------------------------------------------------------------------------- rules


def test_nothing_is_wrong_with_good_nights_and_with_sites_that_are_being_set_up(place: Place) -> None:
    assert place.conditions() == set()
    well(place)
    assert place.conditions() == set()


def _failed(place: Place) -> None:
    place.export("north", "g1", FAILED, 2 * HOUR, error="The server answered 500.")


def _mended(place: Place) -> None:
    _failed(place)
    place.export("north", "g1", PUBLISHED, HOUR)


def _run_failed(place: Place, **more: Any) -> None:
    values = {
        "run_id": "r1",
        "job_name": "north__ingest",
        "site": "north",
        "export_id": None,
        "resolved_at": None,
        **more,
    }
    place.sql(
        f"INSERT INTO run_failure ({', '.join(values)}, failed_at, error) VALUES ({', '.join(['%s'] * len(values))}, %s, %s)",
        *values.values(),
        place.clock.now() - HOUR / 2,
        "A mapping is wrong.",
    )


def _a_check_failed(place: Place) -> None:
    """As checks keep their answers: one is mended since, one fails, one warns."""
    orphans = Rule("orphans", "no row without its source", "SELECT 1", "person")
    odd = Rule("odd_counts", "counts are usual", "SELECT 1", None, Severity.WARN)
    mended = Rule("mended", "it holds", "SELECT 1", "person")
    with place.runtime.connect() as connection:
        record_checks(connection, [Finding(mended, {None: 3, "south": 4})], NOW - 3 * HOUR)
        answers = [Finding(mended, {}), Finding(orphans, {"north": 2}), Finding(odd, {"south": 1}, "half as many rows")]
        record_checks(connection, answers, NOW - HOUR)


def _unmapped(place: Place) -> None:
    for night, unmapped in ((6, 3), (5, 2), (4, 4), (3, 3), (2, 3), (1, 2), (0, 400)):
        export_id = place.export("south", "g3", PUBLISHED, night * 24 * HOUR + HOUR / 2)
        place.sql(
            "INSERT INTO coverage VALUES (%s, 'south', %s, NULL, 'measurement', 'Observation', 'code', 'x', 1000, %s)",
            export_id,
            NOW,
            1000 - unmapped,
        )


def _disk(place: Place) -> None:
    total, free = 10**18, 10**15
    for day in range(6):
        place.sql("INSERT INTO disk_sample VALUES ('home', %s, %s, %s)", NOW - day * 24 * HOUR, total, free * (1 + day))


@pytest.mark.parametrize(
    ("happens", "expected"),
    {
        "an export failed": (_failed, {("run_failed", "north")}),
        "an export failed and the next one did not": (_mended, set()),
        "a run failed": (_run_failed, {("run_failed", "north")}),
        "a run of the instance failed": (
            lambda place: _run_failed(place, job_name="lakehouse", site=None),
            {("run_failed", None)},
        ),
        "a run failed and was made good": (lambda place: _run_failed(place, resolved_at=NOW), set()),
        "a run failed and its export is published": (
            lambda place: _run_failed(place, export_id=place.export("north", "g1", PUBLISHED, 2 * HOUR)),
            set(),
        ),
        "a run failed before a publication by hand": (
            lambda place: (_run_failed(place), place.export("north", "g1", PUBLISHED, HOUR / 3, takes=HOUR / 4)),
            set(),
        ),
        "a run for a day failed before a publication of another one": (
            lambda place: (
                _run_failed(place, partition="2026-02-01"),
                place.export("north", "g1", PUBLISHED, HOUR / 3, takes=HOUR / 4),
            ),
            {("run_failed", "north")},
        ),
        "nobody asks for an export": (
            lambda place: place.export("south", "g3", RUNNING, 20 * HOUR, next_poll_at=NOW - 5 * HOUR),
            {("site_stuck", "south"), ("export_waiting", "south")},
        ),
        "a site does not answer": (
            lambda place: place.export(
                "south", "g3", RUNNING, HOUR, failing_since=NOW - 3 * HOUR, error="timed out", next_poll_at=NOW
            ),
            {("site_stuck", "south")},
        ),
        "an export is landed and not loaded": (
            lambda place: place.export("south", "g3", LANDED, 9 * HOUR, landed_at=NOW - 8 * HOUR),
            {("site_stuck", "south")},
        ),
        "an export is landed": (
            lambda place: place.export("south", "g3", LANDED, 9 * HOUR, landed_at=NOW - HOUR),
            set(),
        ),
        "an export takes as long as usual": (lambda place: place.export("north", "g1", RUNNING, 1.4 * HOUR), set()),
        "an export takes longer than usual": (
            lambda place: place.export("north", "g1", RUNNING, 1.6 * HOUR),
            {("export_waiting", "north")},
        ),
        "a kick-off is refused again and again": (
            lambda place: place.sql(
                "INSERT INTO next_kick_off VALUES ('north', 'c', 'g1', %s, 3, %s, 'busy')", NOW, NOW + HOUR
            ),
            {("site_stuck", "north")},
        ),
        "dead letters jump": (
            lambda place: place.export("north", "g1", PUBLISHED, 1.5 * HOUR, lines=(1000, 90)),
            {("dead_letters_jump", "north")},
        ),
        "dead letters grow a little": (
            lambda place: place.export("north", "g1", PUBLISHED, 1.5 * HOUR, lines=(1000, 12)),
            set(),
        ),
        "an incremental export is not compared with whole ones": (
            lambda place: place.export("north", "g1", PUBLISHED, HOUR, lines=(1000, 90), since=NOW - 30 * HOUR),
            {("dead_letters_jump", "north")} - {("dead_letters_jump", "north")},
        ),
        "unmapped codes jump": (_unmapped, {("unmapped_codes_jump", "south")}),
        "a check failed": (_a_check_failed, {("check_failed", "north"), ("check_warns", "south")}),
        "a disk ends by its trend": (_disk, {("disk_full_soon", None)}),
    }.values(),
)
def test_rules(
    place: Place, happens: Any, expected: set[tuple[str, str | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    if happens is not _disk:
        monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"total": 10**18, "free": 10**17}))
    else:
        monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"total": 10**16, "free": 10**15}))
    well(place)
    happens(place)
    assert place.conditions() == expected


def test_a_night_is_missed_by_the_sites_own_schedule_and_zone(place: Place) -> None:
    well(place, at=-HOUR)  # the last ones were asked for at 9:00 UTC, after both nights' schedules
    place.clock.advance(24 * 3600)  # the next night of Chicago is 3.5 hours old, that of Kolkata 15.5
    place.export("north", "g1", RUNNING, 3 * HOUR, next_poll_at=place.clock.now())
    assert place.conditions() == {("no_publication", "south"), ("export_waiting", "north")}
    place.clock.advance(9 * 3600)
    found = place.conditions()
    assert ("no_publication", "north") in found
    assert ("no_publication", "south") in found


def test_nothing_ran_at_all_is_one_condition_of_the_instance(place: Place) -> None:
    well(place)
    place.clock.advance(40 * 3600)
    assert place.conditions() == {("nothing_ran", None)}
    assert place.conditions(DagsterState(daemon=False, stopped=frozenset())) == {("nothing_ran", None)}
    stopped = DagsterState(daemon=True, stopped=frozenset({"south"}))
    assert place.conditions(stopped) == {("nothing_ran", None), ("site_stopped", "south")}
    _run_failed(place, job_name="north__kick_off")  # it was tried
    assert place.conditions() == {("run_failed", "north"), ("no_publication", "north"), ("no_publication", "south")}


def test_a_rule_that_cannot_be_asked_ends_no_alert(place: Place) -> None:
    well(place)
    _failed(place)
    place.run()
    place.sql("ALTER TABLE run_failure RENAME TO run_failure_away")
    try:
        report = place.run()
        assert report.recorded is not None
        assert report.recorded.resolved == 0
        assert ("rule_failed", None) in place.conditions()
        assert report.heartbeat is None
    finally:
        place.sql("ALTER TABLE run_failure_away RENAME TO run_failure")
    assert place.sql("SELECT DISTINCT kind FROM alert WHERE resolved_at IS NULL ORDER BY 1") == [
        ("rule_failed",),
        ("run_failed",),
    ]


# --------------------------------------------------------------------------------------------------------------- outbox


def test_one_broken_site_is_one_message_with_its_recovery(place: Place) -> None:
    well(place, at=10 * HOUR)  # published before this night, which is due by the afternoon
    _failed(place)
    place.export("north", "g2", FAILED, HOUR, error="The server answered 500.")
    place.run()
    assert place.events() == [("opened", "north")]
    (_, headers, body) = place.webhook.seen[0]
    assert len(body["problems"]) == 2
    assert all(body["problems"][0][name] for name in ("what", "meaning", "to_do", "command", "title", "opened_at"))
    assert headers["X-Epic-Omop-Message"]
    place.run()
    place.clock.advance(12 * 3600)  # the night is missed as well, which follows from what is known
    place.run()
    assert ("no_publication", "north") in place.conditions()
    assert [event for event in place.events() if event[1] == "north"] == [("opened", "north")]
    place.export("north", "g1", PUBLISHED, HOUR, lines=(1000, 500))  # news: they jump
    place.run()
    assert place.events()[-1] == ("further", "north")
    assert place.webhook.seen[-1][2]["problems"][0]["kind"] == "dead_letters_jump"
    place.clock.advance(24 * 3600)
    place.run()
    assert ("reminder", "north") in place.events()
    well(place)
    report = place.run()
    assert ("resolved", "north") in place.events()
    last = next(body for _, _, body in reversed(place.webhook.seen) if body["site"] == "north")
    assert {one["kind"] for one in last["recovered"]} >= {"run_failed", "no_publication", "dead_letters_jump"}
    assert report.recorded is not None
    place.run()
    assert place.events().count(("resolved", "north")) == 1
    assert place.sql("SELECT count(*) FROM alert_delivery WHERE state <> 'delivered'") == [(0,)]


def test_several_senders_at_once_send_each_message_once(place: Place) -> None:
    well(place)
    for number in range(6):
        place.sql("INSERT INTO run_failure VALUES (%s, %s, NULL, NULL, NULL, %s, 'x')", str(number), f"j{number}", NOW)
    _failed(place)
    place.webhook.after_seconds = 0.2
    place.write([{**HOOK, "name": f"hook{number}"} for number in range(3)])
    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(lambda _: run_alerts(place.runtime), range(4)))
    assert sorted(place.events(), key=str) == [("opened", "north")] * 3 + [("opened", None)] * 3
    assert sum(len(report.sent) for report in reports) == 6


def test_a_sender_killed_between_sending_and_marking_sends_again_with_the_same_id(place: Place) -> None:
    """kill -9: twice rather than not at all."""
    place.clock.advance((datetime.now(UTC) - NOW).total_seconds())  # the program has the real time
    place.sql("INSERT INTO run_failure VALUES ('r', 'lakehouse', NULL, NULL, NULL, %s, 'x')", datetime.now(UTC))
    finished = place.terminal.run(
        "alerts", "run", code=None, program=killed("pipeline.operations.alerts.run:send", "after", 1)
    )
    assert finished.code == -9
    assert len(place.webhook.seen) == 1
    place.terminal.run("alerts", "run")
    place.terminal.run("alerts", "run")
    assert [headers["X-Epic-Omop-Message"] for _, headers, _ in place.webhook.seen] == [
        place.webhook.seen[0][1]["X-Epic-Omop-Message"]
    ] * 2
    assert place.sql("SELECT state, attempts FROM alert_delivery") == [("delivered", 1)]


def test_a_receiver_that_fails_is_tried_again_and_keeps_nothing_from_the_others(place: Place) -> None:
    well(place)
    _failed(place)
    place.variables["AWAY"] = f"http://127.0.0.1:{closed_port()}/hunter2"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWAY", place.variables["AWAY"])
        place.write([{**HOOK, "name": "away", "url_env": "AWAY"}, HOOK])
        report = place.run()
        assert [name for name, _ in report.sent] == ["hook"]
        assert [name for name, _ in report.failures] == ["away"]
        assert place.run().failures == []  # not before a minute has passed
        assert place.run().waiting["away"][0] == 1
        place.clock.advance(61)
        patch.setenv("AWAY", place.webhook.url("/late"))
        assert place.run().sent[0][0] == "away"
    assert place.events() == [("opened", "north")] * 2
    place.write([{**HOOK, "name": "gone"}])
    place.clock.advance(25 * 3600)
    place.webhook.status = 503
    place.run()
    place.write([HOOK])
    place.run()
    assert place.sql("SELECT DISTINCT state FROM alert_delivery WHERE channel = 'gone'") == [("given_up",)]


def test_a_later_message_replaces_one_that_waits(place: Place) -> None:
    well(place)
    _failed(place)
    place.webhook.status = 500
    place.run()
    well(place)
    place.clock.advance(120)
    place.webhook.status = 200
    place.run()
    assert place.events() == [("opened", "north"), ("resolved", "north")]
    states = place.sql("SELECT event, state FROM alert_delivery JOIN alert_message USING (message_id) ORDER BY 1")
    assert states == [("opened", "superseded"), ("resolved", "delivered")]


def test_channels_have_sites_and_a_severity_of_their_own(place: Place) -> None:
    place.write([{**HOOK, "name": "s", "sites": ["south"]}, {**HOOK, "name": "e", "severity": "error"}])
    well(place)
    _failed(place)
    place.export("south", "g3", RUNNING, 1.6 * HOUR)
    report = place.run()
    assert sorted((name, subject.split()[3].rstrip(":")) for name, subject in report.sent) == [
        ("e", "north"),
        ("s", "south"),
    ]


# ------------------------------------------------------------------------------------------------------------- channels


@dataclass(frozen=True)
class Wrong:
    """What a receiver does → the error, and words of it."""

    set_up: Any
    kind: type[EpicOmopError]
    words: str


@pytest.mark.parametrize(
    "wrong",
    [
        Wrong({"status": 400}, PermanentError, "answered 400"),
        Wrong({"status": 404, "body": b"no_service"}, PermanentError, "no such webhook"),
        Wrong({"status": 410}, PermanentError, "channel is gone"),
        Wrong({"status": 429}, RemoteUnavailable, "answered 429"),
        Wrong({"status": 503}, RemoteUnavailable, "answered 503"),
        Wrong({"status": 302, "headers": {"Location": "http://127.0.0.1:9/hunter2"}}, PermanentError, "not followed"),
        Wrong({"after_seconds": 1.5}, RemoteUnavailable, ""),
        Wrong({"dripping": True}, RemoteUnavailable, "took longer than 0.5 s"),
    ],
    ids=lambda wrong: str(wrong.set_up),
)
def test_a_webhook_that_refuses_hangs_or_drips(place: Place, wrong: Wrong) -> None:
    for name, value in wrong.set_up.items():
        setattr(place.webhook, name, value)
    place.write([HOOK], timeout_seconds=0.5)
    ((_, _, error),) = try_channels(place.runtime, None)
    assert isinstance(error, wrong.kind)
    assert wrong.words in str(error)
    assert "hunter2" not in str(error)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("", "is empty"),
        ("T0/B0/hunter2", "is no URL"),
        ("ftp://h/hunter2", "is no URL"),
        ("http://hooks.example.org/hunter2", "is not https"),
        ("https://[hunter2", "is no URL"),
        ("https://h/a\x00hunter2", "something else"),
    ],
)
def test_a_wrong_address_is_an_error_that_does_not_show_it(
    place: Place, monkeypatch: pytest.MonkeyPatch, value: str, words: str
) -> None:
    monkeypatch.setattr("os.environ", {"HOOK": value})
    ((_, _, error),) = try_channels(place.runtime, None)
    assert isinstance(error, ConfigurationError)
    assert words in str(error)
    assert "HOOK" in str(error)
    assert "hunter2" not in str(error)


def test_teams_says_with_200_what_it_refused(place: Place) -> None:
    place.write([{**HOOK, "format": "teams"}])
    place.webhook.body = b"Webhook message delivery failed with error: Microsoft Teams endpoint returned HTTP error 413"
    ((_, _, error),) = try_channels(place.runtime, None)
    assert isinstance(error, PermanentError)


MAIL = {"kind": "email", "host": "localhost", "sender": "etl@h.example", "recipients": ["a@h.example", "b@h.example"]}


@pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")
@pytest.mark.parametrize("security", ["starttls", "tls", "none"])
def test_mail_by_each_kind_of_connection(place: Place, tmp_path: Path, security: str) -> None:
    file = certificate(tmp_path)
    password = tmp_path / "password"
    password.write_text(PASSWORD + "\n")
    password.chmod(0o600)
    login = {"username": USER, "password_file": str(password)} if security != "none" else {}
    with running_mails(security, file if security != "none" else None, login=bool(login)) as mails:
        channel = {**MAIL, "port": mails.port, "security": security, "ca_file": str(file), **login}
        place.write([channel])
        well(place)
        _failed(place)
        report = place.run()
        assert report.failures == []
        (mail,) = mails.seen
        assert "A run failed" in mail["Subject"]
        assert mails.recipients == [["a@h.example", "b@h.example"]]
        assert mails.logins == ([USER] if login else [])
        if login:
            password.write_text("wrong")
            ((_, _, refused),) = try_channels(place.runtime, None)
            assert isinstance(refused, ConfigurationError)
            assert "refused the login (535)" in str(refused)
            place.write([{**channel, "ca_file": None}])
            ((_, _, untrusted),) = try_channels(place.runtime, None)
            assert isinstance(untrusted, ConfigurationError)
            assert "certificate is not trusted" in str(untrusted)


def test_a_mail_server_that_refuses_hangs_or_is_not_there(place: Place, tmp_path: Path) -> None:
    plain = {**MAIL, "security": "none"}

    def error_of(channel: dict[str, Any]) -> EpicOmopError | None:
        place.write([channel], timeout_seconds=0.5)
        ((_, _, error),) = try_channels(place.runtime, None)
        return error

    assert "no connection" in str(error_of({**plain, "port": closed_port()}))
    assert "no connection" in str(error_of({**plain, "host": "no-such-host.invalid"}))
    with hanging_port() as port:
        for security in ("none", "starttls", "tls"):
            assert isinstance(error_of({**MAIL, "security": security, "port": port}), RemoteUnavailable)
    with running_mails("none") as mails:
        plain["port"] = mails.port
        assert "no STARTTLS" in str(error_of({**plain, "security": "starttls"}))
        assert "no TLS connection" in str(error_of({**plain, "security": "tls"}))
        mails.answer = "451 later"
        assert isinstance(error_of(plain), RemoteUnavailable)
        mails.answer = "554 no"
        assert isinstance(error_of(plain), PermanentError)
        mails.answer = "250 OK"
        mails.refused = {"a@h.example": "550 unknown", "b@h.example": "550 unknown"}
        assert "refused all recipients (550)" in str(error_of(plain))
        del mails.refused["b@h.example"]
        place.write([plain])
        assert try_channels(place.runtime, None) == [("email", "The mail server refused 1 of 2 recipients.", None)]


def test_the_heart_beats_only_when_all_is_looked_at_and_sent(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_webhook() as watcher:
        monkeypatch.setenv("HEART", watcher.url("/ping/hunter2"))
        place.write([HOOK], heartbeat={"url_env": "HEART"})
        well(place)
        assert place.run().heartbeat is True
        assert [path for path, _, _ in watcher.seen] == ["/ping/hunter2"]
        place.webhook.status = 500
        _failed(place)
        assert place.run().heartbeat is None  # nobody was informed: the watcher must
        place.webhook.status = 200
        watcher.status = 500
        place.clock.advance(120)
        report = place.run()
        assert report.heartbeat is False
        assert "hunter2" not in str(report.failures)


def test_a_warehouse_that_is_away_is_said_once_and_its_return_too(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    away = Settings(home=place.home, database_url=f"postgresql://x:hunter2@127.0.0.1:{closed_port()}/x", sites=SITES)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            report = run_alerts(Runtime(away, place.clock))
            assert report.away is not None
    assert place.events() == [("opened", None)]
    assert "hunter2" not in str(place.webhook.seen[0][2])
    place.run()
    place.run()
    assert place.events() == [("opened", None), ("resolved", None)]
    assert not (place.home / "alerts" / "warehouse-away.json").exists()


# -------------------------------------------------------------------------------------------------------------- command


def test_the_commands_exit_codes_and_words(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = place.terminal
    place.sql("INSERT INTO run_failure VALUES ('r', 'lakehouse', NULL, NULL, NULL, %s, 'A disk.')", datetime.now(UTC))
    assert "1 open, 1 of them new" in terminal.run("alerts", "run").out
    (listed,) = orjson.loads(terminal.run("alerts", "list", "--json").out)
    assert (listed["kind"], listed["command"]) == ("run_failed", "epic-omop ui")
    narrow = CommandLine(terminal.home, terminal.url, {**terminal.variables, "COLUMNS": "80"})
    out = narrow.run("alerts", "list").out
    assert "Job lakehouse failed: A disk." in out
    assert "epic-omop ui" in out
    assert "hook" in terminal.run("alerts", "test").out
    refused = terminal.run("alerts", "test", "--channel", "none", code=2)
    assert "hook" in refused.err
    place.webhook.status = 404
    assert "no such webhook" in terminal.run("alerts", "test", code=1).err
    place.webhook.status = 503
    terminal.run("alerts", "test", code=75)
    place.sql("DELETE FROM run_failure")
    terminal.run("alerts", "run", code=75)
    waits = terminal.run("alerts", "run", code=75)
    assert "wait for another try" in waits.err
    assert orjson.loads(terminal.run("alerts", "run", "--json", code=75).out)["waiting"][0]["channel"] == "hook"
    place.write([HOOK], sites={"nroth": {}}, instance="the tests")
    place.webhook.status = 200
    assert "Did you mean 'north'?" in terminal.run("alerts", "test").err
    assert place.webhook.seen[-1][2]["subject"] == "[the tests] the warehouse: test"
    del place.variables["HOOK"]
    monkeypatch.delenv("HOOK")
    assert "variable HOOK" in terminal.run("alerts", "test", code=2).err
    (place.home / "operations.yaml").write_text("alerts:\n  chanels: []\n")
    assert "Did you mean 'channels'?" in terminal.run("alerts", "run", code=2).err
    for finished in (refused, waits):
        assert "hunter2" not in finished.out + finished.err


def test_no_secret_is_kept_or_logged(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.variables["EPIC_OMOP_LOG_LEVEL"] = "DEBUG"
    place.sql("INSERT INTO run_failure VALUES ('r', 'lakehouse', NULL, NULL, NULL, %s, 'A disk.')", datetime.now(UTC))
    place.write([HOOK, {"kind": "log"}])
    finished = place.terminal.run("alerts", "run")
    assert "A disk." in finished.err
    kept = str(place.sql("SELECT * FROM alert_message")) + str(place.sql("SELECT * FROM alert_delivery"))
    assert "hunter2" not in finished.out + finished.err + kept


def test_an_old_schema_is_an_error_that_says_what_to_do(place: Place) -> None:
    place.sql("ALTER TABLE alert RENAME TO alert_away")
    place.sql("ALTER TABLE alert_delivery RENAME TO delivery_away")
    try:
        assert "epic-omop db init" in place.terminal.run("alerts", "run", code=74).err
    finally:
        place.sql("ALTER TABLE alert_away RENAME TO alert")
        place.sql("ALTER TABLE delivery_away RENAME TO alert_delivery")
    assert place.webhook.seen == []
