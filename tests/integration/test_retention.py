"""Retention: what it removes is needed by nothing. `verify` holds after it at any time, also after it was killed in between;
later exports, replays and remaps come to the same rows as without it."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
import yaml
from dagster._core.scheduler.instigation import TickData, TickStatus

from pipeline.core.clock import ManualClock
from pipeline.core.errors import ConfigurationError, TransientError, UsageError
from pipeline.core.retention_settings import RetentionSettings
from pipeline.core.settings import SiteSettings
from pipeline.lakehouse.store import lakehouse_folder
from pipeline.landing.store import LandedExport
from pipeline.load.remap import remap
from pipeline.load.replay import replay_dead_letters
from pipeline.operations.retention.files import FILE_ITEMS
from pipeline.operations.retention.items import ItemReport, ItemWork
from pipeline.operations.retention.run import ITEMS, run_retention
from pipeline.operations.retention.tables import HISTORY
from pipeline.orchestration.dagster_retention import dagster_items
from pipeline.orchestration.definitions import build_definitions
from pipeline.orchestration.switches import turn
from pipeline.quality.verify import verify_access_log, verify_landing
from pipeline.warehouse.access_looks import record_look
from pipeline.warehouse.resolver_cache import _CACHE_SCHEMA
from pipeline.warehouse.runtime import Runtime
from tests.command_line import CommandLine, killed
from tests.databases import Prepared
from tests.integration.conftest import warehouse_of
from tests.integration.support import Warehouse, observation, patient

STRICT = SiteSettings(name="one", vanished="delete-after 2 exports", landing_keep="2 exports")
SHORT = dict.fromkeys(("staging", "defects", "members", "dead_letters", "history", "resolver_answers"), "1 day")


def configured(warehouse: Warehouse, retention: dict[str, str], lakehouse: Path | None = None) -> Warehouse:
    settings = warehouse.runtime.settings
    settings.home.mkdir(exist_ok=True)
    (settings.home / "operations.yaml").write_text(yaml.safe_dump({"retention": retention}))
    update = {"sites": {"one": STRICT}, "lakehouse": str(lakehouse) if lakehouse else None}
    return Warehouse(Runtime(settings.model_copy(update=update), warehouse.runtime.clock), warehouse.folder)


def retained(warehouse: Warehouse, *, is_dry: bool = False) -> dict[str, ItemReport]:
    found = {one.name: one for one in run_retention(warehouse.runtime, ITEMS, is_dry=is_dry)}
    assert [one.problem for one in found.values() if one.problem] == []
    whole(warehouse)
    return found


def whole(warehouse: Warehouse) -> None:
    warehouse.assert_whole()
    runtime = warehouse.runtime
    with runtime.connect() as connection:
        checks = [*verify_landing(connection, runtime.landing), verify_access_log(connection, runtime.settings.home)]
    assert [check for check in checks if not check.ok] == []


def everything(warehouse: Warehouse) -> tuple[object, ...]:
    """Files with their sizes, and rows of `etl` by table."""
    home = warehouse.runtime.settings.home
    files = {str(path.relative_to(home)): path.stat().st_size for path in home.rglob("*") if path.is_file()}
    for name in ("retention.lock", "access_log.anchor"):  # of the run, and of the check of the log
        files.pop(name, None)
    tables = [row[0] for row in warehouse.rows("SELECT tablename FROM pg_tables WHERE schemaname = 'etl' ORDER BY 1")]
    return files, {table: warehouse.value(f"SELECT count(*) FROM etl.{table}") for table in tables}


def night(number: int, ids: list[str], *, bad: str = "") -> dict[str, list[dict[str, object]]]:
    """A whole export of a group: the patient, and observations whose values change in some nights."""
    lines = [observation(one, valueQuantity={"value": hash_of(one, number), "code": "mg/dL"}) for one in ids]
    if bad:
        lines.append(observation(bad, effectiveDateTime=f"00.00.{number:04}"))
    return {"Patient": [patient()], "Observation": lines}


def hash_of(name: str, number: int) -> int:
    return (len(name) * 7 + ord(name[-1]) * 3 + number // 3) % 50


def leave_behind(warehouse: Warehouse) -> None:
    """What crashes, resolvers and errors leave, of long ago."""
    home, now = warehouse.runtime.settings.home, warehouse.runtime.clock.now()
    for name in ("staging/one/7/measurement/part.parquet", "transforming/gone/plan", "defects/20250101T000000-1.txt"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(b"x" * 5000)
    for path in sorted(home.glob("[std][tre]*/**/*")):
        if path.parts[len(home.parts)] in {"staging", "transforming", "defects"}:
            os.utime(path, (now.timestamp() - 30 * 86_400,) * 2)
    for name in ("staging/one", "transforming/gone"):
        os.utime(home / name, (now.timestamp() - 30 * 86_400,) * 2)
    answers(home, now)
    with warehouse.runtime.connect() as connection:
        connection.execute("INSERT INTO request_count VALUES ('one', %s, 5)", (now - timedelta(days=30),))
        connection.execute(
            "INSERT INTO alert (key, kind, severity, what, command, opened_at, last_seen_at, resolved_at)"
            " VALUES ('a', 'k', 'error', 'w', 'c', %(old)s, %(old)s, %(old)s),"
            " ('b', 'k', 'error', 'w', 'c', %(old)s, %(old)s, NULL)",
            {"old": now - timedelta(days=30)},
        )
        for message, state in ((1, "delivered"), (2, "pending")):
            connection.execute(
                "INSERT INTO alert_message VALUES (%s, 'one', 'opened', %s, '{}')", (message, now - timedelta(days=30))
            )
            connection.execute(
                "INSERT INTO alert_delivery (message_id, channel, state, next_try) VALUES (%s, 'mail', %s, %s)",
                (message, state, now),
            )
    record_look(warehouse.runtime, "report")


def answers(home: Path, now: datetime) -> None:
    """Four codes: ended, of a former release and answered again, of a former release alone, and of today's."""
    folder = home / "vocabulary" / "resolvers"
    folder.mkdir(parents=True)
    old = now - timedelta(days=30)
    rows = [
        ("r", "u", "h2", "", "s", "ended", "none", None, None, old, old + timedelta(days=1)),
        ("r", "u", "h1", "", "s", "again", "exact", 1, None, old, None),
        ("r", "u", "h2", "", "s", "again", "exact", 2, None, now, None),
        ("r", "u", "h1", "", "s", "former", "exact", 3, None, old, None),
    ]
    pl.DataFrame(rows, schema=dict(_CACHE_SCHEMA), orient="row").write_parquet(folder / "r.parquet")


@pytest.fixture
def grown(warehouse: Warehouse, tmp_path: Path) -> Warehouse:
    """Six nights of a group, with letters that were closed and one that is open, and what was left behind."""
    warehouse = configured(warehouse, {**SHORT, "lakehouse_snapshots": "1 snapshot"}, tmp_path / "lake")
    plans = [("a", "bad"), ("ab", "bad"), ("abc", ""), ("abc", "other"), ("ac", "other"), ("ac", "other")]
    for number, (ids, bad) in enumerate(plans):
        warehouse.ingest(warehouse.land(night(number, list(ids), bad=bad), group="g", complete=True))
    warehouse.load({"Observation": [observation("bad")]})  # closes the letter of the first nights
    assert isinstance(warehouse.runtime.clock, ManualClock)
    warehouse.runtime.clock.advance(10 * 86_400)
    leave_behind(warehouse)
    lakehouse = lakehouse_folder(str(tmp_path / "lake"))
    for _ in range(3):
        with lakehouse.writing():
            name, _draft = lakehouse.new_snapshot(warehouse.runtime.clock.now())
            lakehouse.complete(name, group_readable=False)
    return warehouse


def test_a_dry_run_says_what_goes_and_changes_nothing(grown: Warehouse) -> None:
    before, rows = everything(grown), grown.checksums()
    dry = retained(grown, is_dry=True)
    assert everything(grown) == before

    done = retained(grown)
    assert {name: one.removed for name, one in dry.items()} == {name: one.removed for name, one in done.items()}
    assert {name: one.removed for name, one in done.items()} == {
        "landing": done["landing"].removed,
        "staging": 2,
        "defects": 1,
        "members": done["members"].removed,
        "resolver_answers": 2,
        "dead_letters": 4,
        "history": done["history"].removed,
        "access_log": 0,
        "lakehouse_snapshots": 2,
        "vocabulary_releases": 0,
    }
    assert done["landing"].removed >= 3
    assert done["members"].removed >= 2
    assert done["staging"].bytes
    reasons = {name: {kept.why for kept in one.kept} for name, one in done.items()}
    assert any("45 CFR 164.316" in why for why in reasons["access_log"])
    assert "open: a replay needs their lines" in reasons["dead_letters"]
    assert "a group's next export is compared with it" in reasons["members"]
    assert any("export_file: the account" in why for why in reasons["history"])
    assert grown.rows("SELECT key FROM alert") == [("b",)]
    assert grown.rows("SELECT message_id FROM alert_message") == [(2,)]
    assert grown.checksums() == rows

    assert {name: one.removed for name, one in retained(grown).items() if one.removed} == {}
    # What the letters were is counted: as many days as before they went.
    history = grown.rows(
        "SELECT code, ending, sum(letters)::integer FROM dead_letter_history GROUP BY 1, 2 ORDER BY 1, 2"
    )
    assert history == [("date_invalid", "resolved", 1), ("date_invalid", "superseded", 3)]


def test_what_was_killed_in_between_is_whole_and_goes_on(grown: Warehouse) -> None:
    runtime, rows = grown.runtime, grown.checksums()
    assert runtime.settings.database_url is not None
    sites = {"one": {"vanished": STRICT.vanished, "landing_keep": STRICT.landing_keep}}
    (runtime.settings.home / "sites.yaml").write_text(yaml.safe_dump({"sites": sites}))
    terminal = CommandLine(runtime.settings.home, runtime.settings.database_url)
    places = (
        ("pipeline.load.pruning:remove_rest", "before", 1),
        ("pipeline.operations.retention.files:_remove", "after", 1),
        ("pipeline.operations.retention.tables:closed_letters", "after", 1),
        ("pipeline.operations.retention.tables:_of_table", "after", 3),
    )
    for place in places:
        terminal.run("retention", "run", code=-9, program=killed(*place))
        whole(grown)
    finished = json.loads(terminal.run("retention", "run", "--json").out)
    assert [one["problem"] for one in finished if one["problem"]] == []
    assert {one["item"] for one in finished} >= {item.name for item in ITEMS}
    whole(grown)
    assert grown.checksums() == rows
    assert "What stays, and why" in terminal.run("retention", "run", "--dry-run").out
    terminal.run("retention", "run", "--only", "nothing", code=2)
    assert "dagster_runs" in terminal.run("retention", "settings").out
    (runtime.settings.home / "operations.yaml").write_text("retention:\n  dead_letter: 3 days\n")
    assert "dead_letters" in terminal.run("retention", "run", code=2).err


def test_dagsters_job_says_what_goes(grown: Warehouse) -> None:
    runtime = grown.runtime
    job = build_definitions(runtime.settings, {"runtime": runtime}).resolve_job_def("retention")
    before = everything(grown)
    with dg.DagsterInstance.ephemeral() as instance:
        form = {
            "ops": {
                "keep_what_is_needed": {"config": {"dry_run": True, "only": ["staging", "dead_letters", "access_log"]}}
            }
        }
        result = job.execute_in_process(form, instance=instance)
        messages = [log.user_message for log in instance.all_logs(result.run_id)]
    assert everything(grown) == before
    assert any(message.startswith("staging: 2 folders of loads.") for message in messages)
    assert any(message.startswith("dead_letters: 4 closed dead letters.") for message in messages)
    assert any("access_log: 0 entries." in message and "45 CFR" in message for message in messages)


@contextmanager
def twins(prepared: Prepared, folder: Path) -> Iterator[tuple[Warehouse, Warehouse]]:
    """Two warehouses of the same exports; retention is run in the first alone."""
    for name in ("kept", "whole"):
        (folder / name).mkdir()
    with warehouse_of(prepared, folder / "kept") as one, warehouse_of(prepared, folder / "whole") as other:
        yield configured(one, SHORT), configured(other, SHORT)


@pytest.mark.parametrize("seed", [1, 2])
def test_any_history_comes_to_the_same_rows_with_and_without(
    demo_warehouse: Prepared, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    with twins(demo_warehouse, tmp_path) as both:
        late: list[LandedExport] = []
        for number in range(7):
            ids = [name for name in "abcdef" if chance.random() < 0.7]
            files = night(number, ids, bad=chance.choice(["", "bad", "f"]))
            group = chance.choice(["g", "g", "h", None])
            for warehouse in both:
                export = warehouse.land(files, group=group, complete=group is not None)
                if number == 2:  # it is loaded three nights late
                    late.append(export)
                else:
                    warehouse.ingest(export)
            retained(both[0])
            if number == 5:
                for warehouse, export in zip(both, late, strict=True):
                    warehouse.ingest(export)
        for warehouse in both:
            replay_dead_letters(warehouse.runtime, STRICT)
            remap(warehouse.runtime, STRICT)
            whole(warehouse)
        assert both[0].content() == both[1].content()
        open_letters = "SELECT resource_id, code, open_since FROM dead_letter WHERE state = 'open' ORDER BY 1"
        assert both[0].rows(open_letters) == both[1].rows(open_letters)


def test_settings_are_checked_and_the_lock_is_kept(warehouse: Warehouse) -> None:
    for wrong in (
        {"staging": "2 weeks"},
        {"staging": "0 days"},
        {"lakehouse_snapshots": "90 days"},
        {"acces_log": "1 day"},
    ):
        with pytest.raises(ConfigurationError, match=r"operations\.yaml"):
            list(run_retention(configured(warehouse, wrong).runtime, ITEMS, is_dry=True))
    runtime = configured(warehouse, {}).runtime
    running = run_retention(runtime, FILE_ITEMS, is_dry=False)
    next(running)
    with pytest.raises(TransientError, match="Another run"):
        next(run_retention(runtime, FILE_ITEMS, is_dry=False))
    running.close()
    with pytest.raises(UsageError, match="access_log"):
        next(run_retention(runtime, ITEMS, is_dry=False, only=["accesslog"]))


def test_an_item_that_fails_holds_up_no_other(warehouse: Warehouse) -> None:
    runtime = configured(warehouse, SHORT).runtime
    (runtime.settings.home / "seen").mkdir()
    (runtime.settings.home / "seen" / "file").write_text("no folder")
    (runtime.settings.home / "staging").write_text("no folder either")
    with runtime.connect() as connection:
        connection.execute("ALTER TABLE dead_letter RENAME COLUMN closed_at TO elsewhere")
    found = {one.name: one for one in run_retention(runtime, ITEMS, is_dry=False)}
    assert "dead_letters" in [name for name, one in found.items() if one.problem]
    assert found["history"].problem == ""
    assert len(found) == len(ITEMS)


def test_the_tables_of_history_are_there_as_they_are_named(warehouse: Warehouse) -> None:
    there = {row[0] for row in warehouse.rows("SELECT tablename FROM pg_tables WHERE schemaname = 'etl'")}
    assert {table.table for table in HISTORY} <= there


def test_dagster_keeps_the_last_run_of_each_day_of_an_asset(warehouse: Warehouse, tmp_path: Path) -> None:
    days = dg.StaticPartitionsDefinition(["2026-01-01", "2026-01-02"])

    @dg.asset(partitions_def=days)
    def load() -> None:
        print("written to the log")

    @dg.job
    def kick_off() -> None:
        dg.op(name="ask")(lambda: None)()

    job = dg.Definitions(assets=[load], jobs=[dg.define_asset_job("ingest", [load])]).resolve_job_def("ingest")
    (tmp_path / "dagster").mkdir()
    with dg.instance_for_test(temp_dir=str(tmp_path / "dagster")) as instance:
        runs = [job.execute_in_process(partition_key=day, instance=instance).run_id for day in ("2026-01-01",) * 2]
        runs.append(job.execute_in_process(partition_key="2026-01-02", instance=instance).run_id)
        asked = kick_off.execute_in_process(instance=instance).run_id
        waiting = instance.create_run_for_job(kick_off).run_id
        for run in (runs[0], waiting):
            (Path(instance.storage_directory()) / run / "compute_logs").mkdir(parents=True, exist_ok=True)
            (Path(instance.storage_directory()) / run / "compute_logs" / "step.out").write_text("words")
        turn(
            instance,
            SiteSettings(name="one", fhir_url="https://one.example", client_id="c", private_key_env="K", groups=("g",)),
            on=True,
        )
        later = datetime.now(UTC) + timedelta(days=200)
        states = {state.instigator_name: state for state in instance.all_instigator_state()}
        schedule = states["one__nightly"]
        ids = {"instigator_origin_id": schedule.instigator_origin_id, "selector_id": schedule.selector_id}
        for time in (later - timedelta(days=150), later - timedelta(days=3)):
            instance.create_tick(
                TickData(
                    **ids,
                    instigator_name=schedule.instigator_name,
                    instigator_type=schedule.instigator_type,
                    status=TickStatus.SUCCESS,
                    timestamp=time.timestamp(),
                    run_ids=[],
                )
            )
        for is_dry in (True, False):
            work = ItemWork(warehouse.runtime, RetentionSettings(), later, is_dry)
            reports = {}
            for item in dagster_items(instance):
                reports[item.name] = item.report(work.settings)
                item.apply(work, reports[item.name])
            assert reports["dagster_runs"].removed == 2
            assert {kept.why: kept.count for kept in reports["dagster_runs"].kept} == {
                "the last materialization of an asset, or of a day of it": 2,
                "not finished": 1,
            }
            assert reports["dagster_logs"].removed >= 1
        assert reports["dagster_ticks"].removed == 1
        ticks = instance.get_ticks(schedule.instigator_origin_id, schedule.selector_id)
        assert [tick.timestamp for tick in ticks] == [(later - timedelta(days=3)).timestamp()]
        left = {record.dagster_run.run_id for record in instance.get_run_records()}
        assert left == {runs[1], runs[2], waiting}
        assert asked not in left
        assert instance.get_materialized_partitions(dg.AssetKey("load")) == {"2026-01-01", "2026-01-02"}
        assert (Path(instance.storage_directory()) / waiting).is_dir()
        assert not (Path(instance.storage_directory()) / runs[0]).exists()
