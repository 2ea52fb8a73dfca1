"""One run of retention: all items in turn, each by itself, so that one that fails holds up no other."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

import psycopg
from filelock import FileLock, Timeout

from pipeline.core.errors import ConfigurationError, EpicOmopError, TransientError, UsageError
from pipeline.core.files import make_folder
from pipeline.core.operations_settings import load_operations
from pipeline.core.retention_settings import RetentionSettings
from pipeline.core.settings import Settings
from pipeline.operations.retention.files import FILE_ITEMS
from pipeline.operations.retention.items import ItemReport, ItemWork, RetentionItem
from pipeline.operations.retention.stores import STORE_ITEMS
from pipeline.operations.retention.tables import TABLE_ITEMS
from pipeline.warehouse.runtime import Runtime
from pipeline.warehouse.server_failures import server_errors

__all__ = ["ITEMS", "retention_settings", "run_retention", "settings_or_defaults"]

_log = logging.getLogger(__name__)

#: All but those of Dagster, which `pipeline.orchestration.retention` adds.
ITEMS: tuple[RetentionItem, ...] = (STORE_ITEMS[0], *FILE_ITEMS, *TABLE_ITEMS, *STORE_ITEMS[1:])


def retention_settings(runtime: Runtime) -> RetentionSettings:
    """The section of operations.yaml, or the defaults. Raises ConfigurationError."""
    return load_operations(runtime.settings).retention


def settings_or_defaults(settings: Settings) -> RetentionSettings:
    """The same for what must not fail for a slip in operations.yaml, such as the definitions that Dagster loads."""
    try:
        return load_operations(settings).retention
    except ConfigurationError as error:
        _log.warning("Retention has its defaults: %s", error.message)
        return RetentionSettings()


def run_retention(
    runtime: Runtime,
    items: Sequence[RetentionItem],
    *,
    is_dry: bool,
    only: Collection[str] = (),
    progress: Callable[[str], None] = lambda _name: None,
) -> Iterator[ItemReport]:
    """Yields what each item removed, or would remove; what went wrong is in its report. `only`: names of items.

    Raises UsageError for a name that is none, ConfigurationError, TransientError while another run of this home works.
    """
    settings = retention_settings(runtime)
    if unknown := sorted(set(only) - {item.name for item in items}):
        known = ", ".join(item.name for item in items)
        raise UsageError(f"Nothing that is kept is called {unknown[0]!r}.", f"There are: {known}.")
    work = ItemWork(runtime, settings, runtime.clock.now(), is_dry)
    with _alone(runtime):
        for item in items:
            if not only or item.name in only:
                progress(item.name)
                yield _applied(item, work)


def _applied(item: RetentionItem, work: ItemWork) -> ItemReport:
    report = item.report(work.settings)
    try:
        with server_errors():
            item.apply(work, report)
    except EpicOmopError as error:
        report.problem = str(error)
    except (OSError, psycopg.Error) as error:  # the text of the server may quote a row
        report.problem = getattr(error, "strerror", None) or type(error).__name__
    if report.problem:
        _log.warning("Retention of %s: %s", item.name, report.problem)
    return report


@contextmanager
def _alone(runtime: Runtime) -> Iterator[None]:
    """One run at a time; the lock goes with its process."""
    home = runtime.settings.home
    make_folder(home)
    lock = FileLock(home / "retention.lock", timeout=0, mode=0o600)
    try:
        lock.acquire()
    except Timeout:
        raise TransientError("Another run of retention is at work.", "Try again when it has ended.") from None
    try:
        yield
    finally:
        lock.release()
