"""Items that are files below the home: what killed loads left, files about defects, members of exports, answers of resolvers."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psycopg

from omop_schema.exports import ExportKind
from pipeline.core.errors import SiteBusy
from pipeline.core.retention_settings import age_of
from pipeline.operations.retention.items import ItemReport, ItemWork, RetentionItem
from pipeline.warehouse.export_jobs import SiteWork, site_lock
from pipeline.warehouse.resolver_cache import drop_old_answers

__all__ = ["FILE_ITEMS"]

#: No load of the site may take its lock for longer than this while its leftovers go.
_LOCK_SECONDS = 1.0


def _staging(work: ItemWork, report: ItemReport) -> None:
    """Folders of sites below `staging/` and `transforming/`, whole: whoever loads a site clears them anyway."""
    age, settings = age_of(work.settings.staging), work.runtime.settings
    roots = (settings.staging, settings.home / "transforming")
    sites = sorted({path.name for root in roots if root.is_dir() for path in root.iterdir() if path.is_dir()})
    for site in sites:
        folders = [root / site for root in roots if (root / site).is_dir()]
        if age is None or any(_newest(folder) > work.now - age for folder in folders):
            report.keep(len(folders), "newer than the setting")
            continue
        try:
            with (
                work.runtime.connect() as connection,
                site_lock(connection, site, SiteWork.INGEST, wait_seconds=_LOCK_SECONDS),
            ):
                _remove(folders, report, work)
        except SiteBusy:
            report.keep(len(folders), f"site {site} is being loaded")


def _defects(work: ItemWork, report: ItemReport) -> None:
    age, folder = age_of(work.settings.defects), work.runtime.settings.home / "defects"
    files = sorted(folder.glob("*.txt")) if folder.is_dir() else []
    old = [file for file in files if age is not None and _time(file) < work.now - age]
    _remove(old, report, work)
    report.keep(len(files) - len(old), "newer than the setting")


def _members(work: ItemWork, report: ItemReport) -> None:
    """Files of `seen/`. Needed are those of the two newest exports of a group (its next export is compared with them), those
    by which vanished resources are counted, and those of exports that are newer than one which can still come: an old
    export's line must not count over what a newer one confirmed.
    """
    age, root = age_of(work.settings.members), work.runtime.settings.home / "seen"
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        files = {int(file.stem): file for file in folder.glob("*.parquet") if file.stem.isdecimal()}
        with work.runtime.connect() as connection:
            times = _times(connection, folder.name)
            late = _earliest_that_may_come(work, connection, folder.name)
            groups = _of_groups(connection, folder.name)
        old = []
        for number, file in sorted(files.items()):
            time = times.get(number)
            if time is not None and (age is None or time > work.now - age):
                report.keep(1, "newer than the setting")
            elif number in groups.newest:
                report.keep(1, "a group's next export is compared with it")
            elif time is not None and groups.counts(number, time):
                report.keep(1, "vanished resources are counted by it")
            elif time is not None and time > late:
                report.keep(1, "an older export, or an open dead letter of one, may still be loaded")
            else:
                old.append(file)
        _remove(old, report, work)


def _times(connection: psycopg.Connection, site: str) -> dict[int, datetime]:
    return dict(
        connection.execute(
            "SELECT export_id, transaction_time FROM export_job WHERE site = %s AND published_at IS NOT NULL", (site,)
        ).fetchall()
    )


def _earliest_that_may_come(work: ItemWork, connection: psycopg.Connection, site: str) -> datetime:
    """Of exports that landing has whole, and of open dead letters: any of them can be loaded again."""
    rows = connection.execute(
        "SELECT export_id, coalesce(transaction_time, requested_at) FROM export_job"
        f" WHERE site = %s AND pruned_at IS NULL AND kind <> '{ExportKind.REPLAY}'",
        (site,),
    ).fetchall()
    landing = work.runtime.landing
    pruned = work.pruned.get(site, frozenset())
    times = [time for number, time in rows if number not in pruned and landing.exists(site, number)]
    (letter,) = connection.execute(
        "SELECT min(job.transaction_time) FROM dead_letter JOIN export_job AS job USING (export_id)"
        " WHERE dead_letter.site = %s AND dead_letter.state = 'open'",
        (site,),
    ).fetchone() or (None,)
    return min([*times, *([letter] if letter else [])], default=work.now)


@dataclass(frozen=True)
class _Groups:
    """Exports of a site's groups, the two newest of each, and the time of the oldest since which a resource is absent."""

    exports: frozenset[int]
    newest: frozenset[int]
    absent_since: datetime | None

    def counts(self, export_id: int, time: datetime) -> bool:
        """Whether a resource that a group lacks may have been seen in this export of no group."""
        return export_id not in self.exports and self.absent_since is not None and time >= self.absent_since


def _of_groups(connection: psycopg.Connection, site: str) -> _Groups:
    rows = connection.execute(
        "SELECT export_id, row_number() OVER (PARTITION BY own.group_id ORDER BY job.transaction_time DESC, export_id DESC)"
        " FROM group_export AS own JOIN export_job AS job USING (export_id) WHERE own.site = %s",
        (site,),
    ).fetchall()
    (since,) = connection.execute(
        "SELECT min(job.transaction_time) FROM absent_resource JOIN export_job AS job ON job.export_id = last_export_id"
        " WHERE job.site = %s",
        (site,),
    ).fetchone() or (None,)
    newest = frozenset(number for number, place in rows if place <= 2)
    return _Groups(frozenset(number for number, _ in rows), newest, since)


def _resolver_answers(work: ItemWork, report: ItemReport) -> None:
    age = age_of(work.settings.resolver_answers)
    found = drop_old_answers(
        work.runtime.settings.home, None if age is None else work.now - age, work.now, is_dry=work.is_dry
    )
    report.remove(found.removed)
    report.keep(found.kept, "they count, or say for which codes a concept was once known")


def _remove(paths: Iterable[Path], report: ItemReport, work: ItemWork) -> None:
    for path in paths:
        size = _size(path)
        if not work.is_dry:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        report.remove(1, size)


def _newest(folder: Path) -> datetime:
    """When something below was last written."""
    return max([_time(folder), *(_time(path) for path in folder.rglob("*"))])


def _time(path: Path) -> datetime:
    """UTC; of a file that went meanwhile the beginning of time."""
    with suppress(FileNotFoundError):
        return datetime.fromtimestamp(path.lstat().st_mtime, UTC)
    return datetime.fromtimestamp(0, UTC)


def _size(path: Path) -> int:
    files = [path, *path.rglob("*")] if path.is_dir() and not path.is_symlink() else [path]
    size = 0
    for file in files:
        with suppress(FileNotFoundError):
            size += file.lstat().st_blocks * 512
    return size


FILE_ITEMS = (
    RetentionItem("staging", "folders of loads", _staging),
    RetentionItem("defects", "files", _defects),
    RetentionItem("members", "files", _members),
    RetentionItem("resolver_answers", "answers", _resolver_answers),
)
