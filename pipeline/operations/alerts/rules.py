"""All rules together: what is wrong at present, as a function over `etl` and the disk."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import psycopg

from pipeline.core.operations_settings import load_operations
from pipeline.operations.alerts.circumstances import Circumstances, ObserveDagster, nothing_known
from pipeline.operations.alerts.disk_rules import disks_full_soon
from pipeline.operations.alerts.jump_rules import dead_letter_jumps, failed_checks, unmapped_jumps
from pipeline.operations.alerts.kinds import AlertKind, Condition
from pipeline.operations.alerts.run_rules import failed_runs, missed_nights, stuck_sites, waiting_exports
from pipeline.warehouse.runtime import Runtime

__all__ = ["RULES", "Findings", "current_conditions", "find_conditions"]

_log = logging.getLogger(__name__)

Rule = Callable[[psycopg.Connection, Circumstances], Iterator[Condition]]

#: Rule → the kinds that it finds.
RULES: Mapping[Rule, tuple[AlertKind, ...]] = {
    failed_runs: (AlertKind.RUN_FAILED,),
    missed_nights: (AlertKind.NO_PUBLICATION, AlertKind.NOTHING_RAN, AlertKind.SITE_STOPPED),
    stuck_sites: (AlertKind.SITE_STUCK,),
    waiting_exports: (AlertKind.EXPORT_WAITING,),
    failed_checks: (AlertKind.CHECK_FAILED, AlertKind.CHECK_WARNS),
    dead_letter_jumps: (AlertKind.DEAD_LETTERS_JUMP,),
    unmapped_jumps: (AlertKind.UNMAPPED_CODES_JUMP,),
    disks_full_soon: (AlertKind.DISK_FULL_SOON,),
}


@dataclass(frozen=True)
class Findings:
    """`unknown`: kinds whose rule could not be asked: whether their alerts still hold is not known."""

    conditions: tuple[Condition, ...]
    unknown: frozenset[AlertKind] = frozenset()


def current_conditions(
    connection: psycopg.Connection, runtime: Runtime, dagster: ObserveDagster = nothing_known
) -> list[Condition]:
    """What is wrong at present, worst first; nothing is written. `connection` has the etl schema on its search_path.

    Raises ConfigurationError where operations.yaml is wrong.
    """
    alerts = load_operations(runtime.settings).alerts
    found = find_conditions(connection, Circumstances(runtime.settings, alerts, runtime.clock.now(), dagster))
    return list(found.conditions)


def find_conditions(connection: psycopg.Connection, at: Circumstances) -> Findings:
    """Ask every rule. One that fails is a condition of its own, and keeps no other from being asked."""
    conditions: dict[str, Condition] = {}
    unknown: set[AlertKind] = set()
    for rule, kinds in RULES.items():
        try:
            with connection.transaction():  # a savepoint where one is open already
                found = list(rule(connection, at))
        except (psycopg.Error, OSError) as error:
            if connection.closed or connection.broken:
                raise  # the server is away: no rule can be asked
            _log.warning("Rule %s of the alerts could not be asked (%s).", rule.__name__, type(error).__name__)
            unknown.update(kinds)
            found = [_failed(rule.__name__, error)]
        conditions.update((condition.key, condition) for condition in found)
    ordered = sorted(conditions.values(), key=lambda one: (one.severity, one.site or "", one.key))
    return Findings(tuple(ordered), frozenset(unknown))


def _failed(rule: str, error: Exception) -> Condition:
    """By the class of the error alone: its text may quote a row."""
    return Condition(AlertKind.RULE_FAILED, None, f"Rule {rule} could not be asked ({type(error).__name__}).", rule)
