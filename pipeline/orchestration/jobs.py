"""Jobs of a site: `<site>__kick_off` asks Epic for the exports, `<site>__ingest` lands and loads one that is complete.

Between the two lie minutes to days, in which nothing runs: the export sensor asks for the status when it is due.
"""

# No `from __future__ import annotations`: Dagster compares the annotation of `context` as an object.

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition
from pydantic import Field

from omop_schema.exports import ExportState
from pipeline.core.errors import CooldownActive, EpicOmopError, RemoteUnavailable, RequestBudgetSpent, UsageError
from pipeline.core.settings import SiteSettings
from pipeline.core.workflow import working_as
from pipeline.extract import bulk
from pipeline.extract.bulk.refusals import may_have_started
from pipeline.extract.bulk.request import ExportRequest, checked_request
from pipeline.orchestration.attempts import WAITING, give_new_attempt, is_under_way
from pipeline.orchestration.deep_check import deep_check_key
from pipeline.orchestration.failures import as_failure, raise_as_failures
from pipeline.orchestration.partitions import day_of
from pipeline.orchestration.run_metadata import Metadata, table_value
from pipeline.orchestration.site_assets import landing_key, load_key
from pipeline.orchestration.table_checks import site_check_keys
from pipeline.warehouse.export_jobs import ExportJob
from pipeline.warehouse.next_kick_offs import due_kick_offs
from pipeline.warehouse.runtime import Runtime

__all__ = [
    "DUE_TAG",
    "ExportForm",
    "GroupState",
    "ingest_job",
    "ingest_job_name",
    "kick_off_groups",
    "kick_off_job",
    "kick_off_job_name",
]

#: Set to `yes` on a run that the sensor requested: only groups whose next kick-off is due are asked for.
DUE_TAG = "epic_omop/due"


@dataclass(frozen=True)
class GroupState:
    """What a kick-off found or did for a group. `state` is the export's, or `skipped` (it is in its cool-down), or `postponed`
    (the site's request budget is spent), or `refused` (for now: the sensor tries again at `next_try`), or `failed`."""

    group: str
    state: str
    export_id: int | None = None
    next_try: datetime | None = None
    error: EpicOmopError | None = None
    #: What is to be said of an export that was adopted.
    note: str = ""


class ExportForm(dg.Config):
    """An export that a person asks for in the Launchpad; as it is, the nightly one."""

    groups: list[str] = Field(default=[], description="Only these groups of the site; empty: all.")
    resource_types: list[str] = Field(
        default=[], description="Only these resource types, such as Patient; empty: all of the site's."
    )
    since: str = Field(
        default="",
        description="Only what changed from this time on, such as 2026-03-01T04:00 (UTC), where the site knows `_since`;"
        " empty: everything.",
    )


def kick_off_job_name(site: SiteSettings) -> str:
    return f"{site.name}__kick_off"


def ingest_job_name(site: SiteSettings) -> str:
    return f"{site.name}__ingest"


def kick_off_job(site: SiteSettings) -> dg.JobDefinition:
    """One short op. It has no partition: an export can only be asked for now."""

    @dg.op(
        name=f"{site.name}__kick_off_groups",
        description="Open an export of each group that has none, adopt those that are open. Waits for nothing.",
        tags={"epic_omop/site": site.name},
        out=dg.Out(dg.Nothing),
    )
    def kick_off_op(context: dg.OpExecutionContext, config: ExportForm, runtime: dg.ResourceParam[Runtime]) -> None:
        with raise_as_failures():
            request = _request(runtime, site, config)
            with working_as(context.job_name, context.run_id):
                due = context.run.tags.get(DUE_TAG) == "yes"
                states = kick_off_groups(runtime, request, context.instance, only_due=due)
            for state in states:
                context.log.info(_summary(state))
            today = day_of(site, runtime.clock.now())
            context.log_event(
                dg.AssetObservation(landing_key(site), "Kick-off", metadata=_metadata(states), partition=today)
            )
            failures = [state.error for state in states if state.error and state.state == ExportState.FAILED]
            if failures:
                raise as_failure(failures[0])

    @dg.job(
        name=kick_off_job_name(site),
        description=(
            f"Ask Epic for the exports of site {site.name}'s {len(site.groups)} groups. A group that was asked for too"
            " recently is skipped with the time of the next try. When an export is complete, the sensor loads it."
            " The Launchpad is a form for an export of your own: some groups, some types, or what changed since."
        ),
        tags={"epic_omop/site": site.name},
        executor_def=dg.in_process_executor,
    )
    def job() -> None:
        kick_off_op()

    return job


def _request(runtime: Runtime, site: SiteSettings, form: ExportForm) -> ExportRequest:
    """What a form asks for. Raises UsageError."""
    try:
        since = datetime.fromisoformat(form.since) if form.since else None
        since = since.replace(tzinfo=UTC) if since and since.tzinfo is None else since
        since = since.astimezone(UTC) if since else None
    except (ValueError, OverflowError):
        raise UsageError(
            f"since: {ascii(form.since)[:40]} is not a time.",
            "Such as 2026-03-01T04:00 (UTC) or 2026-03-01T04:00-05:00.",
        ) from None
    return checked_request(runtime.settings, site, groups=form.groups, resource_types=form.resource_types, since=since)


def ingest_job(site: SiteSettings) -> UnresolvedAssetJobDefinition:
    """Landing, load and the checks `accounting` and `coverage` of one day; requested by the sensor for one export. What asks
    for the whole warehouse is left to jobs of its own: after each load it would be asked as often as there are sites."""
    of_warehouse = dg.AssetSelection.checks(deep_check_key(site), *site_check_keys(site))
    return dg.define_asset_job(
        ingest_job_name(site),
        dg.AssetSelection.assets(landing_key(site), load_key(site)) - of_warehouse,
        description=f"Download what Epic has exported of site {site.name}, and load it into the CDM.",
        run_tags={"epic_omop/site": site.name},
        executor_def=dg.in_process_executor,
    )


def kick_off_groups(
    runtime: Runtime, request: ExportRequest, instance: dg.DagsterInstance, *, only_due: bool = False
) -> list[GroupState]:
    """Open or adopt the export of every group that is asked for, or (`only_due`) of those that were refused for now and
    whose next try is due; a group that fails does not delay the others.

    An adopted export that waits for its ingest while no run is under way gets a new attempt. Groups for which the
    site's request budget does not suffice get another turn when the next hour has begun.
    """
    groups = _due_groups(runtime, request.site) if only_due else request.groups
    states = [_kick_off(runtime, request, group, instance) for group in groups]
    times = [state.next_try for state in states if state.state == "postponed" and state.next_try]
    if not times:
        return states
    runtime.clock.sleep(max(0.0, (min(times) - runtime.clock.now()).total_seconds()))
    return [
        _kick_off(runtime, request, state.group, instance) if state.state == "postponed" else state for state in states
    ]


def _due_groups(runtime: Runtime, site: SiteSettings) -> Sequence[str]:
    with runtime.connect() as connection:
        return [entry.group_id for entry in due_kick_offs(connection, site, runtime.clock.now())]


def _kick_off(runtime: Runtime, request: ExportRequest, group: str, instance: dg.DagsterInstance) -> GroupState:
    try:
        job = bulk.open_or_adopt(runtime, request.site, group, since=request.since)
    except CooldownActive as cool_down:
        return GroupState(group, "skipped", next_try=cool_down.next_try)
    except RequestBudgetSpent as spent:
        return GroupState(group, "postponed", next_try=spent.next_try)
    except RemoteUnavailable as refused:
        state = "refused" if refused.next_try and not may_have_started(refused) else "failed"
        return GroupState(group, state, next_try=refused.next_try, error=refused)
    except EpicOmopError as error:
        return GroupState(group, "failed", error=error)
    other = "" if _is_what_was_asked(job, request) else "opened before, for other types or another time"
    if job.state in WAITING and not is_under_way(instance, job.export_id):
        give_new_attempt(runtime, job.export_id)
    return GroupState(group, job.state, job.export_id, job.next_poll_at, note=other)


def _is_what_was_asked(job: ExportJob, request: ExportRequest) -> bool:
    """False for an adopted export that a form asked otherwise for."""
    types = request.site.resource_types
    return (types is None or set(job.resource_types) == set(types)) and job.since == request.since


def _summary(state: GroupState) -> str:
    if state.error:
        later = f" The sensor tries again at {_shown(state.next_try)} UTC." if state.next_try else ""
        return f"Group {state.group}: {state.error.message}{later}"
    if state.state == "postponed":
        return f"Group {state.group} is postponed to {_shown(state.next_try)}: the request budget of the site is spent."
    if state.export_id is None:
        return f"Group {state.group} is skipped: Epic allows no kick-off before {_shown(state.next_try)}."
    note = f" ({state.note})" if state.note else ""
    return f"Group {state.group}: export {state.export_id} is {state.state}{note}."


def _metadata(states: Sequence[GroupState]) -> Metadata:
    rows = [(state.group, state.state, str(state.export_id or "–"), _shown(state.next_try)) for state in states]
    metadata: Metadata = {
        "groups": table_value(("group", "state", "export", "next try or status request (UTC)"), rows),
        "open exports": dg.MetadataValue.int(sum(state.export_id is not None for state in states)),
    }
    skipped = [state.next_try for state in states if state.export_id is None and state.next_try]
    if skipped:
        metadata["skipped groups"] = dg.MetadataValue.int(len(skipped))
        metadata["next try"] = dg.MetadataValue.timestamp(min(skipped))
    return metadata


def _shown(instant: datetime | None) -> str:
    return f"{instant:%Y-%m-%d %H:%M:%S}" if instant else "–"
