"""Asset checks of a site. They look at the warehouse as it is, so they can be run again at any time."""

from __future__ import annotations

import dagster as dg

from pipeline.core.settings import SiteSettings
from pipeline.orchestration.failures import raise_as_failures
from pipeline.orchestration.run_metadata import table_value
from pipeline.orchestration.site_assets import load_key
from pipeline.publication.accounting import ACCOUNTING_RULE, count_accounts, wrong_accounts
from pipeline.quality.coverage import coverage_falls, coverage_nights
from pipeline.warehouse.runtime import Runtime

__all__ = ["accounting_check", "coverage_check"]

_MOST_SHOWN = 20


def accounting_check(site: SiteSettings) -> dg.AssetChecksDefinition:
    """The accounting rule, for every file that was ever published (`pipeline.publication.accounting`)."""

    @dg.asset_check(
        asset=load_key(site),
        name="accounting",
        description=f"Every line of every published file has exactly one outcome: {ACCOUNTING_RULE}.",
    )
    def accounting(runtime: dg.ResourceParam[Runtime]) -> dg.AssetCheckResult:
        with raise_as_failures(), runtime.connect() as connection:
            files, lines, outcomes = count_accounts(connection, site.name)
            wrong = wrong_accounts(connection, site=site.name)
        shown = [(account.export_id, account.file, account.lines, account.outcomes) for account in wrong[:_MOST_SHOWN]]
        return dg.AssetCheckResult(
            passed=not wrong,
            description=f"{files} files, {lines} lines, {outcomes} outcomes; {len(wrong)} files do not add up.",
            metadata={
                "files": files,
                "lines": lines,
                "outcomes": outcomes,
                "files that do not add up": table_value(("export", "file", "lines", "outcomes"), shown),
            },
        )

    return accounting


def coverage_check(site: SiteSettings) -> dg.AssetChecksDefinition:
    """Warns when codes of an element and system have a concept less often than on the nights before."""

    @dg.asset_check(
        asset=load_key(site),
        name="coverage",
        description="The last night's codes have a concept about as often as those of the nights before it, by table,"
        " element and code system.",
    )
    def coverage(runtime: dg.ResourceParam[Runtime]) -> dg.AssetCheckResult:
        with raise_as_failures(), runtime.connect() as connection:
            falls = coverage_falls(connection, site.name)
            nights = coverage_nights(connection, site.name, 1)
        shown = [
            (fall.last.cdm_table, f"{fall.last.resource_type}.{fall.last.element}", fall.last.system or "–",
             fall.last.rows, f"{100 * fall.before:.1f} %", f"{100 * fall.last.share:.1f} %")
            for fall in falls[:_MOST_SHOWN]
        ]  # fmt: skip
        rows, mapped = sum(night.rows for night in nights), sum(night.mapped for night in nights)
        said = f"{mapped:,} of the last night's {rows:,} codes have a concept" if rows else "No codes were loaded yet"
        fell = f"; of {len(falls)} kinds fewer than before: `epic-omop unmapped export`" if falls else ""
        columns = ("table", "element", "system", "codes", "before", "last night")
        return dg.AssetCheckResult(
            passed=not falls,
            severity=dg.AssetCheckSeverity.WARN,
            description=f"{said}{fell}.",
            metadata={"codes": rows, "with a concept": mapped, "what fell": table_value(columns, shown)},
        )

    return coverage
