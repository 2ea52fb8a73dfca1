"""Items of retention that are Dagster's own: finished runs with their events, logs of steps, ticks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import dagster as dg
from dagster._core.events import DagsterEventType

from pipeline.core.retention_settings import age_of
from pipeline.operations.retention.items import ItemReport, ItemWork, RetentionItem
from pipeline.orchestration.switches import open_instance

__all__ = ["dagster_items"]

_FINISHED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
_AT_A_TIME = 200
_Apply = Callable[[dg.DagsterInstance, ItemWork, ItemReport], None]


def dagster_items(instance: dg.DagsterInstance | None = None) -> tuple[RetentionItem, ...]:
    """`instance`: that of a job that runs; None: that of the home, where Dagster was ever started there."""

    def within(work: ItemWork, report: ItemReport, apply: _Apply) -> None:
        if instance is not None:
            apply(instance, work, report)
        elif (work.runtime.settings.home / "dagster" / "dagster.yaml").exists():
            with open_instance(work.runtime.settings) as own:
                apply(own, work, report)

    return (
        RetentionItem("dagster_logs", "runs' logs", lambda work, report: within(work, report, _logs)),
        RetentionItem("dagster_runs", "runs", lambda work, report: within(work, report, _runs)),
        RetentionItem(
            "dagster_ticks", "schedules' and sensors' ticks", lambda work, report: within(work, report, _ticks)
        ),
    )


def _logs(instance: dg.DagsterInstance, work: ItemWork, report: ItemReport) -> None:
    """Folders of runs below Dagster's storage that are finished, or are known no more."""
    age, root = age_of(work.settings.dagster_logs), Path(instance.storage_directory())
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    for folder in folders:
        run = instance.get_run_by_id(folder.name)
        time = datetime.fromtimestamp(folder.stat().st_mtime, work.now.tzinfo)
        if age is None or time > work.now - age:
            report.keep(1, "newer than the setting")
        elif run is not None and run.status not in _FINISHED:
            report.keep(1, "its run is not finished")
        else:
            size = _size(folder)
            if not work.is_dry:
                instance.compute_log_manager.delete_logs(prefix=[folder.name])
                _remove_empty(folder)
            report.remove(1, size)


def _remove_empty(folder: Path) -> None:
    if folder.is_dir() and not any(path.is_file() for path in folder.rglob("*")):
        for path in sorted((folder, *folder.rglob("*")), reverse=True):
            path.rmdir()


def _size(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def _runs(instance: dg.DagsterInstance, work: ItemWork, report: ItemReport) -> None:
    age = age_of(work.settings.dagster_runs)
    total = instance.get_runs_count()
    if age is None:
        report.keep(total, "the setting keeps them")
        return
    before = work.now - age
    needed = _last_of_assets(instance)
    kept = unfinished = 0
    for record in _records_before(instance, before):
        run = record.dagster_run
        if run.status not in _FINISHED:
            unfinished += 1
        elif run.run_id in needed:
            kept += 1
        else:
            if not work.is_dry:
                instance.delete_run(run.run_id)
                _remove_shard(Path(instance.root_directory), run.run_id)
            report.remove(1)
    report.keep(kept, "the last materialization of an asset, or of a day of it")
    report.keep(unfinished, "not finished")
    report.keep(total - report.removed - kept - unfinished, "newer than the setting")


def _records_before(instance: dg.DagsterInstance, before: datetime) -> Iterator[dg.RunRecord]:
    """Oldest first; the ids are known before the first is given, so that they may be deleted."""
    cursor, records = None, list[dg.RunRecord]()
    runs = dg.RunsFilter(created_before=before)
    while page := instance.get_run_records(runs, limit=_AT_A_TIME, cursor=cursor):
        records += page
        cursor = page[-1].dagster_run.run_id
    yield from reversed(records)


def _last_of_assets(instance: dg.DagsterInstance) -> set[str]:
    """Runs without which the UI would show an asset, or a day of it, as never made."""
    found = set()
    for key in instance.all_asset_keys():
        last = instance.get_latest_materialization_event(key)
        if last is not None:
            found.add(last.run_id)
        by_day = instance.get_latest_storage_id_by_partition(key, DagsterEventType.ASSET_MATERIALIZATION)
        ids = sorted(by_day.values())
        for start in range(0, len(ids), _AT_A_TIME):
            part = ids[start : start + _AT_A_TIME]
            events = instance.fetch_materializations(dg.AssetRecordsFilter(key, storage_ids=part), limit=len(part))
            found.update(event.run_id for event in events.records)
    return found


def _remove_shard(home: Path, run_id: str) -> None:
    """With SQLite a run has a file of events of its own, which Dagster empties and leaves."""
    for name in (f"{run_id}.db", f"{run_id}.db-wal", f"{run_id}.db-shm", f"{run_id}.db-journal"):
        (home / "history" / "runs" / name).unlink(missing_ok=True)


def _ticks(instance: dg.DagsterInstance, work: ItemWork, report: ItemReport) -> None:
    age = age_of(work.settings.dagster_ticks)
    states = instance.all_instigator_state()
    if age is None:
        report.keep(len(states), "the setting keeps their ticks")
        return
    before = (work.now - age).timestamp()
    for state in states:
        origin, selector = state.instigator_origin_id, state.selector_id
        old = instance.get_ticks(origin, selector, before=before, limit=1)
        if not old:
            report.keep(1, "no tick is older than the setting")
            continue
        if not work.is_dry:
            instance.purge_ticks(origin, selector, before)
        report.remove(1)
