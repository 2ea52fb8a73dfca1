"""The job `replay_dead_letters`: what `epic-omop dead-letters replay` does, from Dagster, by a form. No line is in its config."""

# No `from __future__ import annotations`: Dagster compares the annotation of `context` as an object.

from collections.abc import Mapping

import dagster as dg
from pydantic import Field

from pipeline.core.errors import UsageError
from pipeline.core.settings import SiteSettings
from pipeline.core.workflow import working_as
from pipeline.load.replay import replay_dead_letters
from pipeline.orchestration.failures import raise_as_failures
from pipeline.orchestration.run_metadata import table_events, table_value
from pipeline.quality.dead_letter_history import open_by_code
from pipeline.quality.report import load_report
from pipeline.warehouse.runtime import Runtime

__all__ = ["REPLAY_JOB", "ReplayForm", "replay_job"]

REPLAY_JOB = "replay_dead_letters"
#: While the site is loaded a replay waits, for an hour at most.
_WAIT = dg.RetryPolicy(max_retries=12, delay=300)


class ReplayForm(dg.Config):
    """Which dead letters go through again."""

    site: str = Field(description="The site whose dead letters go through again.")
    code: str | None = Field(default=None, description="Only letters with this code, such as date_invalid.")
    export: int | None = Field(default=None, description="Only letters that this export brought last: its number.")
    letters: list[int] = Field(default=[], description="Only these letters, by their ids; empty: all that match.")


def replay_job(sites: Mapping[str, SiteSettings]) -> dg.JobDefinition:
    """One op, for whichever site the form names."""

    @dg.op(
        name="replay",
        description="Send open dead letters of a site through the pipeline again, then what waited for them.",
        out=dg.Out(dg.Nothing),
        retry_policy=_WAIT,
    )
    def replay_op(context: dg.OpExecutionContext, config: ReplayForm, runtime: dg.ResourceParam[Runtime]) -> None:
        with raise_as_failures(), working_as(context.job_name, context.run_id):
            site = _known_site(sites, config.site)
            _replay(context, runtime, site, config)

    @dg.job(
        name=REPLAY_JOB,
        description=(
            "Send dead letters of a site through the pipeline again, for example after a mapping was mended. Open the"
            " Launchpad and fill in `site` ("
            + ", ".join(sorted(sites))
            + "), and if you like `code`, `export` or `letters`."
            " What each code means: docs/dead-letters.md."
        ),
        executor_def=dg.in_process_executor,
    )
    def job() -> None:
        replay_op()

    return job


def _known_site(sites: Mapping[str, SiteSettings], name: str) -> SiteSettings:
    site = sites.get(name)
    if site is None:
        raise UsageError(
            f"There is no site {name[:80]!r}.", f"The sites of this installation are {', '.join(sorted(sites))}."
        )
    return site


def _replay(context: dg.OpExecutionContext, runtime: Runtime, site: SiteSettings, form: ReplayForm) -> None:
    settings = runtime.settings
    published = replay_dead_letters(runtime, site, ids=form.letters or None, code=form.code, export_id=form.export)
    with runtime.connect() as connection:
        still = open_by_code(connection, runtime.clock.now(), site=site.name)
        ids = [one.export_id for one in published]
        report = load_report(connection, settings.cdm_schema, settings.vocab_schema, ids)
    context.log.info(
        "%d lines of site %s went through again; %d dead letters are open.",
        *(sum(one.lines for one in published), site.name, sum(one.letters for one in still)),
    )
    for event in table_events(report, published, settings.cdm_schema) if published else []:
        context.log_event(event)
    context.add_output_metadata(
        {
            "lines sent": dg.MetadataValue.int(sum(one.lines for one in published)),
            "exports": dg.MetadataValue.text(", ".join(map(str, ids)) or "–"),
            "still open": table_value(
                ("code", "letters", "days open"), [(one.code, one.letters, one.days_open) for one in still]
            ),
        }
    )
