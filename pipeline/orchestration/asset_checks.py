"""Asset checks of a site. They look at the warehouse as it is, so they can be run again at any time."""

from __future__ import annotations

import dagster as dg

from pipeline.core.settings import SiteSettings
from pipeline.orchestration.failures import raise_as_failures
from pipeline.orchestration.run_metadata import table_value
from pipeline.orchestration.site_assets import load_key
from pipeline.quality.report import OUTCOMES
from pipeline.warehouse.runtime import Runtime

__all__ = ["accounting_check"]

_MOST_SHOWN = 20


def accounting_check(site: SiteSettings) -> dg.AssetChecksDefinition:
    """lines = loaded + unchanged + superseded + excluded + rejected, for every file that was ever published."""

    @dg.asset_check(
        asset=load_key(site),
        name="accounting",
        description="Every line of every published file has exactly one outcome: " + " + ".join(OUTCOMES) + " = lines.",
    )
    def accounting(runtime: dg.ResourceParam[Runtime]) -> dg.AssetCheckResult:
        with raise_as_failures(), runtime.connect() as connection:
            account = f"SELECT *, {' + '.join(OUTCOMES)} AS outcomes FROM file_account WHERE site = %s"
            row = connection.execute(
                f"SELECT count(*), coalesce(sum(lines), 0)::bigint, coalesce(sum(outcomes), 0)::bigint,"
                f" count(*) FILTER (WHERE lines IS DISTINCT FROM outcomes) FROM ({account}) AS account",
                [site.name],
            ).fetchone()
            wrong = connection.execute(
                f"SELECT export_id, file, lines, outcomes FROM ({account}) AS account"
                " WHERE lines IS DISTINCT FROM outcomes ORDER BY export_id DESC, file LIMIT %s",
                [site.name, _MOST_SHOWN],
            ).fetchall()
        assert row is not None
        files, lines, outcomes, bad = row
        return dg.AssetCheckResult(
            passed=bad == 0,
            description=f"{files} files, {lines} lines, {outcomes} outcomes; {bad} files do not add up.",
            metadata={
                "files": files,
                "lines": lines,
                "outcomes": outcomes,
                "files that do not add up": table_value(("export", "file", "lines", "outcomes"), wrong),
            },
        )

    return accounting
