"""A walk through Dagster's UI in a real Chromium, with a picture of each stop, to be looked at.

    python -m tests.browser.walk FOLDER [--chromium PATH]

Makes a home of its own with the simulated Epic as site `north`, starts `epic-omop ui`, and does what people do: materialize,
backfill over days with and without exports, an export by form, a failing check, a dead letter that is replayed, an alert, a
stopped site. Every stop says what it expects; the walk ends with exit code 1 where that does not come. Needs
`pip install -e '.[browser]'` and a Chromium on the PATH; takes some minutes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import httpx
from playwright.sync_api import Page, sync_playwright

from pipeline.core.settings import load_settings
from pipeline.orchestration.replay_job import REPLAY_JOB
from pipeline.warehouse.runtime import Runtime

_SITE = "north"
_GROUPS = ("cardiology", "oncology")
_READY_SECONDS, _RUN_SECONDS = 180.0, 240.0
_PROGRAM = str(Path(sys.executable).with_name("epic-omop"))

_T = TypeVar("_T")


@dataclass
class Walk:
    """Where the walk is. `stops`: name of each stop → what was seen there, or what was missing."""

    page: Page
    url: str
    folder: Path
    runtime: Runtime
    problems: list[str] = field(default_factory=list)
    number: int = 0

    def go(self, path: str, *, sees: str = "") -> None:
        self.page.goto(f"{self.url}{path}")
        self.page.get_by_text("Deployment", exact=True).first.wait_for(timeout=_READY_SECONDS * 1000)
        if sees:
            self.sees(sees)

    def sees(self, text: str) -> None:
        """Waits until the page shows the text; a problem of this stop where it does not come."""
        try:
            self.page.get_by_text(text).first.wait_for(timeout=30_000)
        except Exception as error:  # noqa: BLE001 - whatever the browser says, the walk goes on
            self.problems.append(f"stop {self.number + 1}: {text!r} is not on the page ({type(error).__name__})")

    def picture(self, name: str, *, wait: float = 1.5) -> None:
        self.page.wait_for_timeout(wait * 1000)
        self.number += 1
        self.page.screenshot(path=self.folder / f"{self.number:02} {name}.png")
        print(f"{self.number:02} {name}", flush=True)

    def button(self, name: str) -> None:
        self.page.get_by_role("button", name=name).first.click(timeout=30_000)

    def ask(self, query: str, **variables: Any) -> Any:
        answer = httpx.post(
            f"{self.url}/graphql", json={"query": query, "variables": variables}, timeout=30, trust_env=False
        )
        return answer.json()["data"]

    def runs(self) -> dict[str, tuple[str, str]]:
        """Run id → job, status."""
        found = self.ask("{ runsOrError { ... on Runs { results { runId jobName status } } } }")
        return {one["runId"]: (one["jobName"], one["status"]) for one in found["runsOrError"]["results"]}

    def wait_for_runs(self, before: set[str], *, least: int = 1) -> dict[str, tuple[str, str]]:
        """The runs that began since, when none of them works any more."""

        def ended() -> dict[str, tuple[str, str]] | None:
            new = {run: state for run, state in self.runs().items() if run not in before}
            done = all(status in ("SUCCESS", "FAILURE", "CANCELED") for _, status in new.values())
            return new if len(new) >= least and done else None

        return wait_for(ended, _RUN_SECONDS)

    def reload(self) -> None:
        """ "Reload definitions"."""
        self.ask('mutation { reloadRepositoryLocation(repositoryLocationName: "pipeline.definitions") { __typename } }')


def wait_for(look: Callable[[], _T | None], seconds: float) -> _T:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if found := look():
                return found
        except (httpx.HTTPError, KeyError, OSError):
            pass
        time.sleep(0.5)
    raise SystemExit(f"Nothing came within {seconds:.0f} s.")


# --- stops -------------------------------------------------------------------------------------------------------------


def look_around(walk: Walk) -> None:
    walk.go("/asset-groups", sees="16 assets")
    walk.picture("all assets", wait=3)
    walk.go("/assets/cdm/condition_occurrence")
    walk.sees("Standard concept of the condition")
    walk.picture("a table with its columns described")
    walk.go("/automation", sees=f"{_SITE}__nightly")
    walk.picture("schedules and sensors")


def materialize(walk: Walk) -> None:
    """Today's partition of landing: exports are opened; the sensor loads them when Epic has finished."""
    before = set(walk.runs())
    walk.go(f"/assets/{_SITE}/landing")
    walk.button("Materialize")
    dialog = walk.page.get_by_role("dialog")
    dialog.get_by_role("button", name="Latest").click()
    walk.picture("materialize today")
    dialog.get_by_role("button", name="Launch 1 run").click()
    walk.wait_for_runs(before, least=1 + len(_GROUPS))
    walk.go("/runs", sees=f"{_SITE}__ingest")
    walk.picture("runs of the first night")
    walk.go(f"/assets/{_SITE}/load?view=overview", sees="lines")
    walk.picture("what the load says")
    walk.go(f"/assets/{_SITE}/load?view=checks", sees="accounting")
    walk.picture("checks of the load")


def backfill(walk: Walk) -> None:
    """All days of the site: those without exports end as empty successes."""
    before = set(walk.runs())
    walk.go(f"/assets/{_SITE}/load")
    walk.button("Materialize")
    dialog = walk.page.get_by_role("dialog")
    dialog.get_by_role("button", name="All", exact=True).click()
    walk.picture("backfill over all days")
    dialog.get_by_role("button", name="Launch").last.click()
    runs = walk.wait_for_runs(before, least=4)
    if failed := [run for run, (_, status) in runs.items() if status != "SUCCESS"]:
        walk.problems.append(f"stop {walk.number}: {len(failed)} runs of the backfill failed")
        walk.go(f"/runs/{failed[0]}", sees="STEP_FAILURE")
        walk.picture("a failed run of the backfill", wait=3)
    walk.go(f"/assets/{_SITE}/load?view=partitions")
    walk.picture("partitions after the backfill", wait=4)


def export_by_form(walk: Walk) -> None:
    before = set(walk.runs())
    walk.go(f"/locations/pipeline.definitions/jobs/{_SITE}__kick_off/playground", sees="resource_types")
    config = (
        f"ops:\n  {_SITE}__kick_off_groups:\n    config:\n      groups: [{_GROUPS[0]}]\n"
        "      resource_types: [Patient, Condition]\n      since: ''\n"
    )
    walk.page.evaluate("text => document.querySelector('.CodeMirror').CodeMirror.setValue(text)", config)
    walk.picture("an export by form", wait=3)
    walk.button("Launch Run")
    runs = walk.wait_for_runs(before, least=2)
    if {status for _, status in runs.values()} != {"SUCCESS"}:
        walk.problems.append(f"stop {walk.number}: the export by form: {sorted(runs.values())}")
    run = next(run for run, (job, _) in runs.items() if job.endswith("kick_off"))
    walk.go(f"/runs/{run}", sees="RUN_SUCCESS")
    walk.picture("the run of the form")
    wrong = config.replace("Condition", "Condtion")
    walk.go(f"/locations/pipeline.definitions/jobs/{_SITE}__kick_off/playground", sees="resource_types")
    walk.page.evaluate("text => document.querySelector('.CodeMirror').CodeMirror.setValue(text)", wrong)
    walk.page.wait_for_timeout(2000)
    before = set(walk.runs())
    walk.button("Launch Run")
    (run,) = walk.wait_for_runs(before)
    walk.go(f"/runs/{run}", sees="Did you mean 'Condition'?")
    walk.picture("a misspelt type")


def failing_check(walk: Walk) -> None:
    """An account that does not add up: the check of the load fails, and says which file."""
    with walk.runtime.connect() as connection:
        connection.execute("UPDATE export_file SET loaded = loaded + 1 WHERE file_number = 1")
    before = set(walk.runs())
    walk.go(f"/assets/{_SITE}/load?view=checks", sees="accounting")
    walk.button("Execute")
    walk.wait_for_runs(before)
    walk.go(f"/assets/{_SITE}/load?view=checks", sees="do not add up")
    walk.picture("a failing check", wait=3)
    with walk.runtime.connect() as connection:
        connection.execute("UPDATE export_file SET loaded = loaded - 1 WHERE file_number = 1")


def dead_letters(walk: Walk) -> None:
    """What is open is replayed by a form."""
    before = set(walk.runs())
    walk.go(f"/locations/pipeline.definitions/jobs/{REPLAY_JOB}/playground", sees="ops")
    config = f"ops:\n  replay:\n    config:\n      site: {_SITE}\n"
    walk.page.evaluate("text => document.querySelector('.CodeMirror').CodeMirror.setValue(text)", config)
    walk.picture("replay by form", wait=3)
    walk.button("Launch Run")
    runs = walk.wait_for_runs(before)
    (run,) = (run for run, (job, _) in runs.items() if job == REPLAY_JOB)
    walk.go(f"/runs/{run}", sees="dead letters are open")
    walk.picture("the replay's run")


def stopped_site(walk: Walk) -> None:
    """Switched off by the command; the UI shows it."""
    say("site", "disable", _SITE)
    walk.go("/automation", sees=f"{_SITE}__exports")
    walk.picture("a stopped site", wait=3)


_STOPS = (look_around, materialize, backfill, export_by_form, failing_check, dead_letters, stopped_site)


# --- what is walked through --------------------------------------------------------------------------------------------


def say(*words: str) -> str:
    """A command of ours, to its end. Raises CalledProcessError."""
    return subprocess.run([_PROGRAM, *words], check=True, capture_output=True, text=True).stdout


@contextmanager
def running(*words: str, log: Path) -> Iterator[None]:
    """A command of ours that serves, until the block ends."""
    with log.open("wb") as output:
        process = subprocess.Popen([_PROGRAM, *words], stdout=output, stderr=output, start_new_session=True)
        try:
            time.sleep(2)
            if process.poll() is not None:
                raise SystemExit(f"{' '.join(words[:2])} ended by itself: {log.read_text(encoding='utf-8')[-500:]}")
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(200)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(home: Path) -> Iterator[tuple[str, Runtime]]:
    """The address of the UI of a home with the simulated Epic as a site whose go-live was some days ago."""
    os.environ["EPIC_OMOP_HOME"] = str(home)
    say("db", "init")
    say("vocabulary", "load", str(Path(__file__).parents[2] / "mappings" / "demo_vocabulary"))
    faults = home / "faults.yaml"
    faults.write_text("faults: [{fault: lines, how: malformed-line, type: Condition}]\n", encoding="utf-8")
    groups = [word for group in _GROUPS for word in ("--group", group)]
    sandbox = ("--port", str(free_port()), "--patients", "20", "--window-hours", "0", "--faults", str(faults))
    port = free_port()
    with running("sandbox", "serve", "--site", _SITE, *sandbox, *groups, log=home / "sandbox.log"):
        sites = home / "sites.yaml"
        wait_for(lambda: sites.exists() and "test_mode" in sites.read_text(encoding="utf-8"), _READY_SECONDS)
        live = (datetime.now(UTC) - timedelta(days=4)).date()
        text = sites.read_text(encoding="utf-8")
        sites.write_text(
            text.replace("test_mode: true", f"test_mode: true\n    go_live_date: {live}"), encoding="utf-8"
        )
        with running("ui", "--port", str(port), log=home / "ui.log"):
            url = f"http://127.0.0.1:{port}"
            info = f"{url}/server_info"
            wait_for(lambda: httpx.get(info, timeout=5, trust_env=False).is_success, _READY_SECONDS)
            yield url, Runtime(load_settings())
    say("db", "stop")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the pictures go")
    parser.add_argument(
        "--chromium", default=next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    )
    parser.add_argument("--stop", action="append", choices=[stop.__name__ for stop in _STOPS], help="only these")
    given = parser.parse_args()
    if given.chromium is None:
        parser.error("there is no Chromium on the PATH: name one with --chromium")
    given.folder.mkdir(parents=True, exist_ok=True)
    home = Path(tempfile.mkdtemp(prefix="epic-omop-walk-"))
    try:
        with served(home) as (url, runtime), sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=given.chromium, args=["--no-sandbox"])
            walk = Walk(browser.new_page(viewport={"width": 1400, "height": 900}), url, given.folder, runtime)
            for stop in _STOPS:
                if given.stop is None or stop.__name__ in given.stop:
                    stop(walk)
            browser.close()
    finally:
        shutil.rmtree(home, ignore_errors=True)
    for problem in walk.problems:
        print(problem)
    return 1 if walk.problems else 0


if __name__ == "__main__":
    sys.exit(main())
