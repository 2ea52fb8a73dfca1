"""The rules of `pipeline.quality.checks` as asset checks, made by a factory: of each CDM table those about its rows, of each
site's load those about its accounts and its own past. One op asks each rule once for all sites; sites are metadata.

A check of a CDM table has no partition, because the table has none. Checks of accounts are about all files of a site that are
still accounted for, whatever their day: Dagster takes a partition for a check only where each day is asked by itself.
"""

# No `from __future__ import annotations`: Dagster compares the annotation of `context` as an object.

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from omop_schema.etl import LINEAGE_TABLES
from pipeline.core.settings import Settings, SiteSettings
from pipeline.orchestration.failures import raise_as_failures
from pipeline.orchestration.run_metadata import table_value
from pipeline.orchestration.site_assets import load_key
from pipeline.quality.checks.asking import ask
from pipeline.quality.checks.concepts import ONE_RELEASE, concept_rules
from pipeline.quality.checks.history import history_findings, history_rules
from pipeline.quality.checks.model import Finding, Rule, Schemas, Severity
from pipeline.quality.checks.recording import record
from pipeline.quality.checks.rules import account_rules, rules_of_table
from pipeline.warehouse.runtime import Runtime

__all__ = ["TableChecks", "site_check_keys", "table_checks"]

#: In the instance's zone: after the night's loads, before the lakehouse's snapshot.
_CRON = "0 5 * * *"
_MOST_SHOWN = 50


@dataclass(frozen=True)
class TableChecks:
    checks: dg.AssetChecksDefinition
    job: UnresolvedAssetJobDefinition
    schedule: dg.ScheduleDefinition
    #: those that a snapshot waits for
    blocking: dg.AssetSelection


@dataclass(frozen=True)
class _Place:
    """A check in Dagster and the rule behind it; `site` of those about one site."""

    rule: Rule
    asset: dg.AssetKey
    site: str | None = None

    @property
    def key(self) -> dg.AssetCheckKey:
        return dg.AssetCheckKey(self.asset, self.rule.name)

    def spec(self) -> dg.AssetCheckSpec:
        # An account that is wrong is one site's: it stops the others' snapshots by the guard in `pipeline.lakehouse`.
        is_blocking = self.rule.severity == Severity.ERROR and self.site is None
        return dg.AssetCheckSpec(
            self.rule.name, asset=self.asset, description=f"{self.rule.sentence[0].upper()}{self.rule.sentence[1:]}.",
            blocking=is_blocking,
        )  # fmt: skip


def table_checks(settings: Settings, sites: Sequence[SiteSettings]) -> TableChecks:
    """All checks, the job that runs them and its schedule, which is on from the first day: it asks no site for anything."""
    places = {place.key: place for place in _places(settings, sites)}

    @dg.multi_asset_check(
        name="warehouse_checks",
        specs=[place.spec() for place in places.values()],
        description="What `epic-omop verify` asks, a rule and table each, and each site's past.",
        can_subset=True,
    )
    def warehouse_checks(
        context: dg.AssetCheckExecutionContext, runtime: dg.ResourceParam[Runtime]
    ) -> Iterator[dg.AssetCheckResult]:
        chosen = [places[key] for key in places if key in context.selected_asset_check_keys]
        with raise_as_failures():
            found = _ask(runtime, [place.rule for place in chosen])
        for place in chosen:
            yield _result(place, found[place.rule.name, place.rule.cdm_table])

    keys = list(places)
    job = dg.define_asset_job(
        "warehouse_checks__run",
        dg.AssetSelection.checks(*keys),
        description="Ask every rule of `epic-omop verify` about the warehouse, and compare each site's last night with its past.",
        executor_def=dg.in_process_executor,
    )
    schedule = dg.ScheduleDefinition(
        name="warehouse_checks__nightly",
        job=job,
        cron_schedule=_CRON,
        execution_timezone=settings.time_zone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
    )
    blocking = dg.AssetSelection.checks(*(key for key in keys if places[key].spec().blocking))
    return TableChecks(warehouse_checks, job, schedule, blocking)


def _places(settings: Settings, sites: Sequence[SiteSettings]) -> Iterator[_Place]:
    for table in LINEAGE_TABLES:
        asset = dg.AssetKey([settings.cdm_schema, table])
        yield from (_Place(rule, asset) for rule in rules_of_table(table))
    for rule in concept_rules(settings.cdm_version):
        if rule.cdm_table:
            yield _Place(rule, dg.AssetKey([settings.cdm_schema, rule.cdm_table]))
    # There the release stands that the vocabulary has.
    yield _Place(ONE_RELEASE, dg.AssetKey([settings.cdm_schema, "cdm_source"]))
    for site in sites:
        yield from _places_of_site(site)


def _places_of_site(site: SiteSettings) -> Iterator[_Place]:
    # `accounting` of a site has a check of its own, which names the files (`asset_checks`).
    of_site = [rule for rule in account_rules() if rule.name != "accounting"]
    yield from (_Place(rule, load_key(site), site.name) for rule in (*of_site, *history_rules()))


def site_check_keys(site: SiteSettings) -> list[dg.AssetCheckKey]:
    """Those of a site's load: each asks for all sites and all that they have, so that a site's own load does not run them."""
    return [place.key for place in _places_of_site(site)]


def _ask(runtime: Runtime, rules: Sequence[Rule]) -> dict[tuple[str, str | None], Finding]:
    """Each rule once, recorded."""
    settings = runtime.settings
    schemas = Schemas(settings.cdm_schema, settings.vocab_schema, settings.cdm_version)
    wanted = list(dict.fromkeys(rules))
    past = {rule.name for rule in history_rules()}
    with runtime.connect() as connection:
        found = list(ask(connection, schemas, [rule for rule in wanted if rule.name not in past]))
        if any(rule.name in past for rule in wanted):
            found += history_findings(connection, settings, wanted)
        record(connection, found, runtime.clock.now())
    return {(finding.rule.name, finding.rule.cdm_table): finding for finding in found}


def _result(place: _Place, finding: Finding) -> dg.AssetCheckResult:
    problems = finding.by_site.get(place.site, 0) if place.site else finding.problems
    metadata: dict[str, dg.MetadataValue] = {"problems": dg.MetadataValue.int(problems)}
    if problems and not place.site:
        rows = sorted((site or "not known", count) for site, count in finding.by_site.items())[:_MOST_SHOWN]
        metadata["by site"] = table_value(("site", "problems"), rows)
    if problems and place.rule.advice:
        metadata["what to do"] = dg.MetadataValue.text(place.rule.advice)
    detail = finding.details.get(place.site, finding.detail) if problems else ""
    return dg.AssetCheckResult(
        asset_key=place.asset,
        check_name=place.rule.name,
        passed=not problems,
        severity=dg.AssetCheckSeverity(place.rule.severity.name),
        description=f"{problems:,} problems. {detail}".strip() if problems else "It holds.",
        metadata=metadata,
    )
