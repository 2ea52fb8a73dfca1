"""Checks of what must always hold between landing, accounts, lineage and tables. Reads only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from omop_schema.exports import STATES_WITH_FILES, sql_values
from omop_schema.versions import DEFAULT_CDM_VERSION
from pipeline.core.errors import LandingError, WarehouseError
from pipeline.landing.store import LandingStore
from pipeline.quality.checks.asking import ask
from pipeline.quality.checks.concepts import ONE_RELEASE, concept_rules
from pipeline.quality.checks.model import Finding, Schemas
from pipeline.quality.checks.recording import record
from pipeline.quality.checks.rules import all_rules
from pipeline.warehouse.access_chain import check_chain
from pipeline.warehouse.runtime import Runtime

__all__ = ["Check", "keep_answers", "verify_access_log", "verify_concepts", "verify_landing", "verify_warehouse"]


@dataclass(frozen=True)
class Check:
    """One statement about the warehouse; `problems` counts what contradicts it, `advice` says what helps where a user can."""

    name: str
    problems: int
    detail: str = ""
    advice: str = ""
    #: by site, of those that come from the rules of `pipeline.quality.checks`
    finding: Finding | None = field(default=None, repr=False)

    @property
    def ok(self) -> bool:
        return self.problems == 0


def verify_warehouse(connection: psycopg.Connection, cdm_schema: str) -> Iterator[Check]:
    """Accounting first, then lineage and rows table by table."""
    schemas = Schemas(cdm_schema, "", DEFAULT_CDM_VERSION)  # none of these rules asks the vocabulary
    yield from (_check(finding) for finding in ask(connection, schemas, all_rules()))


def verify_concepts(connection: psycopg.Connection, schemas: Schemas) -> Iterator[Check]:
    """Every concept id of a row is in the active vocabulary release, and valid in it unless it is what the source said; every
    site was compared with that release."""
    for finding in ask(connection, schemas, (*concept_rules(schemas.version), ONE_RELEASE)):
        yield _check(finding)


def _check(finding: Finding) -> Check:
    return Check(finding.rule.title, finding.problems, finding.detail, finding.rule.advice, finding)


def keep_answers(runtime: Runtime, checks: Iterable[Check]) -> None:
    """Write what the rules found into `etl.check_result`, for alerts and `status`. Who may only read keeps nothing."""
    findings = [check.finding for check in checks if check.finding]
    with suppress(psycopg.Error, WarehouseError), runtime.connect() as connection:
        record(connection, findings, runtime.clock.now())


def verify_access_log(connection: psycopg.Connection, home: Path) -> Check:
    """The chain of the access log, against the anchor of the last time too (`pipeline.warehouse.access_chain`)."""
    state = check_chain(connection, home)
    return Check("the access log is whole", len(state.problems), "; ".join(state.problems))


def verify_landing(connection: psycopg.Connection, landing: LandingStore) -> Iterator[Check]:
    """Read every landed file of published exports again and compare its SHA-256."""
    exports = connection.execute(
        f"SELECT site, export_id, pruned_at IS NOT NULL FROM export_job WHERE state IN {sql_values(STATES_WITH_FILES)}"
        " ORDER BY export_id"
    ).fetchall()
    for site, export_id, is_pruned in exports:
        if is_pruned and not landing.is_finished(site, export_id):
            continue  # nothing of it was needed
        try:
            landing.open(site, export_id, verify=True)
            yield Check(f"landing of export {export_id} ({site}) is as it came", 0)
        except LandingError as error:
            advice = (
                "Restore that file from a backup. Where there is none, export again (`epic-omop run --site"
                f" {site}`), then `epic-omop export forget --site {site} --export {export_id}`: other exports are loaded in"
                " its place, and `epic-omop landing prune` removes it in time."
            )
            yield Check(f"landing of export {export_id} ({site}) is as it came", 1, error.message, advice)
