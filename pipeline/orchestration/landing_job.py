"""The job `<site>__prune_landing`: what `epic-omop landing prune --site` does, from Dagster. It has no schedule of its own."""

# No `from __future__ import annotations`: Dagster compares the annotation of `context` as an object.

import dagster as dg

from pipeline.core.settings import SiteSettings
from pipeline.core.workflow import working_as
from pipeline.load.pruning import prune
from pipeline.orchestration.failures import raise_as_failures
from pipeline.warehouse.runtime import Runtime

__all__ = ["prune_job"]


def prune_job(site: SiteSettings) -> dg.JobDefinition:
    """One op: old exports of a site give up what is not needed of them, as `landing_keep` says."""

    @dg.op(
        name=f"{site.name}__prune_exports",
        description="Remove old landed exports, but for the lines that are needed.",
        tags={"epic_omop/site": site.name},
        out=dg.Out(dg.Nothing),
    )
    def prune_op(context: dg.OpExecutionContext, runtime: dg.ResourceParam[Runtime]) -> None:
        with raise_as_failures(), working_as(context.job_name, context.run_id):
            found = prune(runtime, site)
        for export in found:
            if export.problem:
                context.log.warning("Export %d stays as it is: %s", export.export_id, export.problem)
                continue
            context.log.info(
                "Export %d: %d files removed, %d lines moved, %d bytes before and %d after.",
                *(
                    export.export_id,
                    export.files_removed,
                    export.lines_moved,
                    export.bytes_before,
                    export.bytes_after or 0,
                ),
            )
        context.log.info("%d exports pruned; the site keeps %s.", len(found), site.landing_keep)

    @dg.job(
        name=f"{site.name}__prune_landing",
        description=(
            f"Remove landed exports of site {site.name} that are older than {site.landing_keep}, but for the lines of current"
            " resources and open dead letters."
        ),
        tags={"epic_omop/site": site.name},
        executor_def=dg.in_process_executor,
    )
    def job() -> None:
        prune_op()

    return job
