"""Asset checks of a site. They look at the warehouse as it is, so they can be run again at any time."""

from __future__ import annotations

import dagster as dg

from pipeline.core.settings import SiteSettings
from pipeline.orchestration.failures import raise_as_failures
from pipeline.orchestration.run_metadata import table_value
from pipeline.orchestration.site_assets import load_key
from pipeline.publication.accounting import ACCOUNTING_RULE, count_accounts, wrong_accounts
from pipeline.warehouse.runtime import Runtime

__all__ = ["accounting_check"]

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
