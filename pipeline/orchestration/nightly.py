"""One night of a site in this process: the kick-off job, the sensor's poll in a loop, the ingest job for each export.

For `epic-omop demo` and tests. The same jobs, requests and run keys as with Dagster's daemon, on the same instance, so
that the UI shows these runs like any other; only the waiting is done here, by the runtime's clock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import dagster as dg
from dagster._core.storage.tags import RUN_KEY_TAG, SENSOR_NAME_TAG

from pipeline.core.settings import SiteSettings
from pipeline.orchestration.attempts import EXPORT_TAG
from pipeline.orchestration.definitions import build_definitions
from pipeline.orchestration.jobs import ingest_job_name, kick_off_job_name
from pipeline.orchestration.sensors import poll_open_exports
from pipeline.orchestration.switches import sensor_name
from pipeline.warehouse.runtime import Runtime

__all__ = ["RunOutcome", "run_nightly"]

#: Only what Dagster itself cannot do goes to the terminal; the events are in the instance.
_QUIET: dict[str, Any] = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@dataclass
class RunOutcome:
    """Result of a night. `problems` are sentences for people; `next_try` is set when groups were skipped."""

    kick_off_run_id: str
    success: bool
    ingest_run_ids: list[str] = field(default_factory=list)
    export_ids: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    next_try: datetime | None = None

    @property
    def run_ids(self) -> list[str]:
        return [self.kick_off_run_id, *self.ingest_run_ids]


def run_nightly(
    runtime: Runtime, site_name: str, instance: dg.DagsterInstance, on_progress: Callable[[str], None]
) -> RunOutcome:
    """Run the kick-off, wait until the exports are complete, run an ingest for each; returns when none is left.

    Each export gets one ingest run: one that fails is a problem in the outcome, and the next night's to repeat.
    Raises ConfigurationError for an unknown site; what goes wrong in a run is described in the outcome.
    """
    site = runtime.settings.site(site_name)
    return _Night(runtime, site, instance, on_progress).run()


class _Night:
    def __init__(
        self, runtime: Runtime, site: SiteSettings, instance: dg.DagsterInstance, report: Callable[[str], None]
    ) -> None:
        self._runtime = runtime
        self._site = site
        self._instance = instance
        self._report = report
        self._definitions = build_definitions(runtime.settings, {"runtime": runtime})
        self._done: set[str] = set()

    def run(self) -> RunOutcome:
        outcome = self._kick_off()
        while True:
            result = poll_open_exports(self._runtime, self._site)
            if result.errors:
                outcome.success = False
                outcome.problems += result.errors
            requests = [request for request in result.requests if request.tags[EXPORT_TAG] not in self._done]
            for request in requests:
                self._ingest(request, outcome)
            if requests:
                continue
            if result.next_due is None or result.errors or self._waits_only_for_done(result.waiting_ids):
                return outcome
            self._report(" ".join(result.waiting))
            wait = (result.next_due - self._runtime.clock.now()).total_seconds()
            self._runtime.clock.sleep(max(wait, 0.1))

    def _waits_only_for_done(self, export_ids: tuple[int, ...]) -> bool:
        """Exports whose ingest failed wait for their next attempt, which is not this night's."""
        return all(str(number) in self._done for number in export_ids)

    def _kick_off(self) -> RunOutcome:
        self._report("kick-off")
        name = kick_off_job_name(self._site)
        result = self._definitions.resolve_job_def(name).execute_in_process(
            run_config=_QUIET, instance=self._instance, raise_on_error=False
        )
        outcome = RunOutcome(result.run_id, result.success, problems=_problems(result))
        for event in result.get_asset_observation_events():
            next_try = event.asset_observation_data.asset_observation.metadata.get("next try")
            if isinstance(next_try, dg.TimestampMetadataValue):
                outcome.next_try = datetime.fromtimestamp(next_try.value, tz=self._site.zone)
        return outcome

    def _ingest(self, request: dg.RunRequest, outcome: RunOutcome) -> None:
        export_id = request.tags[EXPORT_TAG]
        self._done.add(export_id)
        self._report(f"export {export_id}: landing and loading")
        result = self._definitions.resolve_job_def(ingest_job_name(self._site)).execute_in_process(
            run_config=_QUIET,
            instance=self._instance,
            partition_key=request.partition_key,
            tags={**request.tags, RUN_KEY_TAG: request.run_key or "", SENSOR_NAME_TAG: sensor_name(self._site)},
            raise_on_error=False,
        )
        outcome.ingest_run_ids.append(result.run_id)
        outcome.export_ids.append(int(export_id))
        outcome.success &= result.success
        outcome.problems += _problems(result)


def _problems(result: dg.ExecuteInProcessResult) -> list[str]:
    """The errors of the failed steps of a run."""
    failures = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    return [
        (failure.user_failure_data.description if failure.user_failure_data else None) or failure.error_display_string
        for failure in failures
    ]
